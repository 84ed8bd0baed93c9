"""`archrepair ci` against the live service: every exit code, and the files and annotations that go with it."""

import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial

import pytest
from typer.testing import CliRunner

from archrepair_client import exits
from archrepair_client.ci.github import MAX_SUMMARY_BYTES, append_summary
from archrepair_client.cli import app
from tests.servers import environment_of, free_port

COMMAND = (sys.executable, "-P", "-m", "archrepair_client", "ci")


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(live, monkeypatch, files, tmp_path):
    monkeypatch.setenv("ARCHREPAIR_URL", live.url)
    monkeypatch.setenv("ARCHREPAIR_API_KEY", live.key)

    def run(behave, *options, model=None):
        words = ["ci", "--model", str(model or files.model()), "--data", str(files.data(behave))]
        return CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), *options])

    return run


@pytest.fixture
def github(monkeypatch, tmp_path):
    """The environment of a step; `attempt` is the run's."""
    values = {"GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": str(tmp_path), "GITHUB_REPOSITORY": "acme/signs",
              "GITHUB_SHA": "8c1f2e0", "GITHUB_JOB": "repair", "GITHUB_RUN_ATTEMPT": "1",
              "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "GITHUB_OUTPUT": str(tmp_path / "output")}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def cases_of(path):
    return list(ElementTree.parse(path).iter("testcase"))


def test_0_when_the_gates_are_met(run, tmp_path, github):
    done = run("meet_the_gates")
    assert done.exit_code == exits.PASSED, done.output
    out = tmp_path / "out"
    assert (out / "resnet18.repaired.pt").read_text() == "{} pass"
    assert {path.name for path in out.iterdir()} == {
        "resnet18.repaired.pt", "report.html", "report.json", "summary.md", "junit.xml"
    }  # fmt: skip
    assert "::error" not in done.stdout
    assert (tmp_path / "summary").read_text() == "{} pass"
    outputs = dict(line.split("=") for line in (tmp_path / "output").read_text().splitlines())
    assert outputs == {"verdict": "pass", "exit-code": "0", "job-id": outputs["job-id"],
                       "model-path": str(out / "resnet18.repaired.pt")}  # fmt: skip


def test_1_when_one_is_not(run, github):
    done = run("fail_a_gate")
    assert done.exit_code == exits.GATE_FAILED, done.output
    assert "::error title=Gate%3A test.accuracy >= before + 0.01::it is fail: 1, 2" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "repair.budget_second=5"], "Did you mean 'budget_seconds'"),
        (["--gate", "test.acuracy > before"], "acuracy"),
        (["--spec", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--timeout", "soon"], "'soon' is no time"),
        (["--data", "test=nowhere.npz"], "nowhere.npz is not a file"),
    ],
)
def test_2_when_the_spec_or_the_command_line_is_wrong(run, options, said):
    done = run("succeed", *options)
    assert done.exit_code == exits.USAGE, done.output
    assert said in done.output


def test_3_when_model_or_data_cannot_be_used(run, files, tmp_path, github):
    done = run("refuse_the_data")
    assert done.exit_code == exits.BAD_MODEL_OR_DATA, done.output
    assert "model.fails_on_inputs: wrong shape resize" in (tmp_path / "summary").read_text()
    (case,) = cases_of(tmp_path / "out" / "junit.xml")
    assert case.find("error").get("type") == "exit code 3"
    assert "::error title=ArchRepair::failed: model.fails_on_inputs: wrong shape resize" in done.stdout
    done = run("succeed", model=files.model(b"no zip at all"))
    assert done.exit_code == exits.BAD_MODEL_OR_DATA
    assert "model.not_torchscript" in done.stdout
    assert "model.not_torchscript" in cases_of(tmp_path / "out" / "junit.xml")[0].find("error").text


def test_4_when_the_platform_fails(run, monkeypatch):
    done = run("log_and_crash")
    assert done.exit_code == exits.PLATFORM, done.output
    assert run("log_and_crash", "--platform-failure", "pass").exit_code == 0
    monkeypatch.setattr("archrepair_client.retries.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("ARCHREPAIR_URL", f"http://127.0.0.1:{free_port()}")
    done = run("succeed")
    assert done.exit_code == exits.PLATFORM
    assert "6 attempts" in done.stdout


@pytest.mark.slow
def test_5_when_it_takes_too_long_and_the_job_is_left_or_cancelled(run, client, github):
    done = run("run_for_ever", "--timeout", "1")
    assert done.exit_code == exits.TIMED_OUT, done.output
    job_id = done.stdout.splitlines()[1]
    assert client.jobs.retrieve(job_id).status == "running"
    # The rerun takes it up.
    github.setenv("GITHUB_RUN_ATTEMPT", "2")
    done = run("run_for_ever", "--timeout", "1", "--on-timeout", "cancel")
    assert (done.exit_code, done.stdout.splitlines()[1]) == (exits.TIMED_OUT, job_id)
    assert client.jobs.wait(job_id).status == "cancelled"
    # And what did not succeed is not taken up again.
    github.setenv("GITHUB_RUN_ATTEMPT", "3")
    done = run("run_for_ever", "--timeout", "1", "--on-timeout", "cancel")
    assert done.stdout.splitlines()[1] != job_id


@pytest.mark.slow
def test_6_without_a_key_that_may(run, client, monkeypatch):
    reader = client.keys.create("reader", scopes=["jobs:read"])
    for key in ("ar_wrong_key", reader.key, ""):
        monkeypatch.setenv("ARCHREPAIR_API_KEY", key)
        assert run("succeed").exit_code == exits.NOT_ALLOWED


def test_7_when_a_quota_is_used_up(run, live):
    environment = os.environ | environment_of(live.gateway.settings)

    def set_quota(value):
        command = [sys.executable, "-m", "app.projects", "quota", "default", f"models={value}"]
        subprocess.run(command, env=environment, check=True, capture_output=True)

    set_quota("0")
    try:
        done = run("succeed")
    finally:
        set_quota("")
    assert done.exit_code == exits.QUOTA, done.output
    assert "quota.models" in done.stdout


def test_8_when_the_data_cannot_tell(run, github):
    done = run("leave_it_open")
    assert done.exit_code == exits.INCONCLUSIVE, done.output
    assert "::warning title=Gate" in done.stdout
    assert run("leave_it_open", "--inconclusive", "pass").exit_code == exits.PASSED


@pytest.mark.slow
def test_9_and_130_when_it_is_cancelled_there_or_here(live, client, files, tmp_path):
    environment = {**os.environ, "ARCHREPAIR_URL": live.url, "ARCHREPAIR_API_KEY": live.key, "CI": "true"}
    command = [*COMMAND, "--model", files.model(), "--data", files.data("run_for_ever"), "--out"]

    def start(name):
        words = [*command, tmp_path / name, "--metadata", f"test={tmp_path / name}"]
        # A pytest in the background of a shell ignores SIGINT, and so would its children.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(words, env=environment, preexec_fn=heed, **pipes)

    with start("there") as there, start("here") as here, start("terminated") as terminated:
        jobs = [process.stderr.readline().split()[0] for process in (there, here, terminated)]
        client.jobs.cancel(jobs[0])
        here.send_signal(signal.SIGINT)
        terminated.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in (there, here, terminated)]
        said = here.stdout.read()
        for process in (there, here, terminated):
            process.stderr.read()
    assert codes == [exits.CANCELLED, exits.INTERRUPTED, exits.INTERRUPTED]
    assert f"interrupted: {jobs[1]} was cancelled" in said
    assert [client.jobs.wait(job).status for job in jobs] == ["cancelled"] * 3


def test_a_summary_too_large_for_github_is_cut(tmp_path):
    append_summary(tmp_path / "summary", "a line with an ä\n" * 50_000)
    text = (tmp_path / "summary").read_text()
    assert len(text.encode()) < MAX_SUMMARY_BYTES + 100
    assert text.endswith("an ä\n\nThe rest is in summary.md.\n")


def test_every_code_has_a_meaning_and_the_help_says_it():
    text = CliRunner().invoke(app, ["ci", "--help"], env={"COLUMNS": "200"}).output
    for code, meaning in exits.MEANINGS.items():
        assert f"{code}: {meaning}" in text
