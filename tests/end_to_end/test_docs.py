"""The documentation, done as it says: every page from top to bottom in a shell, beside a live service."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from archrepair_client.exits import MEANINGS
from archrepair_core.spec import RepairSpec
from tests.end_to_end.pages import LANGUAGES, PAGES, ROOT, blocks_of, script_of

BIN = Path(sys.executable).parent
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LOADERS = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
# A variable may be set in one block and used in another; `export NAME=$(…)` is what people write.
SHELLCHECK = (BIN / "shellcheck", "--shell=bash", "--severity=warning", "--exclude=SC2034,SC2154,SC2155")
# What has to be seen once a page was done.
SEEN = {
    "docs/sdk.md": ["job.succeeded", "succeeded pass", "job.not_found req_"],
    "docs/start.md": ["archrepair-out/model.repaired.pt: "],
    "docs/cli.md": ["archrepair-out/model.repaired.pt"],
}
# In order, each once; a page of which nothing can be run is none of them.
DOABLE = dict.fromkeys(block.page for block in BLOCKS if block.language in ("bash", "python") and block.not_run is None)


def test_every_block_says_what_it_is():
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES] == [], f"say one of {LANGUAGES}"
    reasons = {block.place: block.not_run for block in BLOCKS if block.not_run is not None}
    assert [place for place, reason in reasons.items() if len(reason) < 20] == [], "a reason is a sentence"


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "bash"}))
def test_shell_is_sound_also_where_it_is_not_run(page, tmp_path):
    for block in BLOCKS:
        if block.page == page and block.language == "bash":
            (tmp_path / f"line-{block.line}.sh").write_text(block.content)
    files = sorted(tmp_path.iterdir())
    done = subprocess.run([*SHELLCHECK, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=lambda one: one.place)
def test_python_is_python(block):
    ast.parse(block.content)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in LOADERS], ids=lambda one: one.place)
def test_a_spec_is_one(block):
    """Whatever is JSON, YAML or TOML on a page goes into a job, perhaps a part of it; what a service says is `text`."""
    spec = LOADERS[block.language](block.content)
    RepairSpec.model_validate({"datasets": {"repair": "upload:repair"}, **spec})


def test_the_table_of_exit_codes_is_that_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs" / "ci.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == MEANINGS


@pytest.fixture
def shop(client, case, tmp_path, monkeypatch):
    """A directory with a model and data, and a shell in it that knows the commands and the service."""
    for name in ("model", "repair", "test"):
        shutil.copy(getattr(case, name), tmp_path)  # a page may write files of these names
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name, words in {"archrepair": "-P -m archrepair_client", "python": ""}.items():
        (bin_ / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (bin_ / name).chmod(0o755)
    # Of an `archrepair up` of this machine.
    (tmp_path / ".archrepair").symlink_to(client.state_dir)
    # A request that is refused is a page that is wrong.
    (tmp_path / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ARCHREPAIR_URL", client.service.url)
    monkeypatch.setenv("ARCHREPAIR_API_KEY", client.service.api_key)
    monkeypatch.setenv("ARCHREPAIR_PORT", client.service.url.rpartition(":")[2])
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BROWSER", "true")
    # What the page about the API calls by these names.
    monkeypatch.setenv("URL", client.service.url)
    monkeypatch.setenv("KEY", client.service.api_key)
    monkeypatch.setenv("RUN_ID", tmp_path.name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", DOABLE)
def test_a_page_can_be_done(page, shop, client, monkeypatch):
    if page == "docs/api.md":
        monkeypatch.setenv("JOB", finished_job(shop))
    script = script_of([block for block in BLOCKS if block.page == page])
    script = script.replace("http://127.0.0.1:8000", client.service.url)
    done = subprocess.run(["bash", "-c", script], cwd=shop, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    for text in SEEN.get(page, ()):
        assert text in done.stdout, done.stdout
    if page == "docs/ci.md":
        names = {path.name for path in (shop / "archrepair-out").iterdir()}
        assert names == {"model.repaired.pt", "report.html", "report.json", "summary.md", "junit.xml"}


def finished_job(shop):
    """The id of a job that has gates to judge."""
    words = ("archrepair", "repair", "model.pt", "-d", "repair.npz", "-d", "test=test.npz", "--watch", "-q")
    done = subprocess.run(words, cwd=shop, capture_output=True, text=True)
    assert done.returncode in (0, 1, 8), done.stderr
    return done.stdout.split()[0]
