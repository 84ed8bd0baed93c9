"""What is installed is what was tested: exact versions for all of it, and images that take no others."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What pip brings for torch's GPUs, by torch's own exact pins; and what a virtual environment begins with.
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")
OF_THE_ENVIRONMENT = {"pip", "setuptools", "wheel", "archrepair"}
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)")


def pins() -> dict[str, str]:
    """Name to version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [PIN.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert all(found), "a line that is no exact version"
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def asked() -> list[Requirement]:
    extras = [word for words in PROJECT["optional-dependencies"].values() for word in words]
    return [Requirement(word) for word in [*PROJECT["dependencies"], *extras] if not word.startswith("archrepair")]


def test_everything_we_ask_for_is_pinned_within_what_we_allow():
    pinned = pins()
    for requirement in asked():
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version} is pinned"


def test_everything_that_came_with_it_is_pinned_and_of_that_version():
    pinned = pins()
    there = {canonicalize_name(item.metadata["Name"]): item.version for item in distributions()}
    ours = {name: version for name, version in there.items() if name not in OF_THE_ENVIRONMENT
            and not OF_TORCH.match(name)}  # fmt: skip
    unknown = {name: version for name, version in ours.items() if name not in pinned}
    # A local label, as in 2.14.1+cu130, says how a version was built.
    other = {name: version for name, version in ours.items() if name in pinned
             and not SpecifierSet(f"=={pinned[name]}").contains(version, prereleases=True)}  # fmt: skip
    assert (unknown, other) == ({}, {}), "make installs with constraints.txt; what is new in it belongs there"


def test_every_install_we_write_down_takes_the_pins():
    for name in ("Makefile", "docker/gateway.Dockerfile", "docker/worker.Dockerfile"):
        installs = re.findall(r"pip install.*", (ROOT / name).read_text())
        assert installs, name
        assert all("-c constraints.txt" in line for line in installs), name


def test_no_image_is_whatever_is_newest():
    texts = [*(path.read_text() for path in (ROOT / "docker").glob("*.Dockerfile"))]
    compose = (ROOT / "docker-compose.yml").read_text()
    images = [*re.findall(r"^FROM (\S+:\S+)", "\n".join(texts), re.MULTILINE),
              *re.findall(r"^    image: ([\w./-]+:\S+)", compose, re.MULTILINE)]  # fmt: skip
    assert len(images) >= 5
    assert [image for image in images if not re.search(r":\d", image)] == []


def test_nothing_of_ours_unpickles_or_runs_what_it_reads():
    command = [sys.executable, "-m", "ruff", "check", "--select", "S102,S301,S307,S506,S602,S605", "--quiet",
               *(str(ROOT / name) for name in ("app", "worker", "archrepair_core", "archrepair_client"))]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
