"""The commands a job page gives are run as they stand there."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "it's; odd, $HOME `id`.npz"
SPEC = {
    "datasets": {"repair": "upload:repair"},
    "gates": ["test.accuracy >= before + 0.01"],
    "repair": {"budget_seconds": 5},
    "metadata": {"quoted": """'"$HOME`id`\\"""},
}


@pytest.fixture
def job(gateway, submission):
    files = submission(SPEC)
    files[2] = ("repair", (NAME, b"images and labels", "application/octet-stream"))
    return gateway.client.post("/v1/jobs", files=files).raise_for_status().json()


def commands_of(browser, job) -> dict[str, str]:
    page = browser.get(f"/ui/jobs/{job['id']}").text
    found = re.findall(r'<summary>(\w+)</summary>\s*<pre class="code" id="copy-\d"[^>]*>(.*?)</pre>', page, re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


def run(words, text, gateway, directory):
    (directory / NAME).write_bytes(b"images and labels")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.getcwd(), "HOME": str(directory)}
    # Without a terminal the key is read from stdin.
    return subprocess.Popen([*words, text], cwd=directory, env=environment, stdin=subprocess.PIPE, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


def newer(gateway, job):
    found = gateway.client.get("/v1/jobs", params={"model_id": job["model_id"], "limit": 100}).json()["data"]
    return next((row for row in found if row["id"] != job["id"]), None)


def assert_same(again, job):
    assert (again["spec"], again["metadata"], again["model_id"]) == (job["spec"], job["metadata"], job["model_id"])


def test_curl(browser, gateway, job, tmp_path):
    process = run(["bash", "-euc"], commands_of(browser, job)["curl"], gateway, tmp_path)
    out, error = process.communicate(gateway.key + "\n", timeout=60)
    assert process.returncode == 0, (out, error)
    assert_same(json.loads(out), job)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("Python", [sys.executable, "-c"]), ("CLI", ["bash", "-euc"])])
def test_the_client(browser, gateway, job, finish, eventually, tmp_path, name, words):
    process = run(words, commands_of(browser, job)[name], gateway, tmp_path)
    process.stdin.write(gateway.key + "\n")
    process.stdin.flush()
    again = eventually(lambda: process.poll() is not None or newer(gateway, job), 60)
    assert process.poll() is None, process.communicate()
    assert_same(again, job)
    finish(again["id"], result={"outcome": "repaired"}, verdict="pass")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, (out, error)
    assert again["id"] in out + error
