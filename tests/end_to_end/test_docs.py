"""The pages about the client, done as they say: every block of Python, shell and YAML, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from archrepair_client.exits import MEANINGS

ROOT = Path(__file__).parents[2]


def blocks_of(page, *languages):
    found = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    assert found
    assert {language for language, _ in found} <= set(languages)
    return found


@pytest.fixture
def shop(client, case, tmp_path, monkeypatch):
    """A directory with a model and data, and a shell in it that knows the command and the service."""
    for name in ("model", "repair", "test"):
        (tmp_path / Path(getattr(case, name)).name).symlink_to(getattr(case, name))
    shim = tmp_path / "archrepair"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m archrepair_client "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("ARCHREPAIR_URL", client.service.url)
    monkeypatch.setenv("ARCHREPAIR_API_KEY", client.service.api_key)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BROWSER", "true")
    return tmp_path


def run(command, shop, content):
    done = subprocess.run([*command, content], cwd=shop, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_about_python(shop):
    program = "\n".join(content for _, content in blocks_of("sdk.md", "python"))
    said = run([sys.executable, "-P", "-W", "error", "-c"], shop, program).splitlines()
    assert "job.succeeded" in said
    assert "succeeded pass" in said
    assert said[-1].startswith("job.not_found req_")
    assert (shop / "repaired.pt").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_about_shell_and_pipelines(shop):
    for page in ("cli.md", "ci.md"):
        for language, content in blocks_of(page, "bash", "yaml"):
            if language == "yaml":
                (shop / re.match("# (.*)", content)[1]).write_text(content)
            else:
                run(["bash", "-euo", "pipefail", "-c"], shop, content)
    names = {path.name for path in (shop / "archrepair-out").iterdir()}
    both = {"model.repaired.pt", "report.html", "report.json"}
    assert names == {*both, "localization.json", "summary.md", "junit.xml"}


def test_the_table_of_exit_codes_is_that_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs" / "ci.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == MEANINGS
