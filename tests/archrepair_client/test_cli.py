"""The command line against the live service: data on stdout, messages on stderr, errors in words."""

import json
import os
import stat
import subprocess
import sys
import webbrowser

import pytest
from typer.testing import CliRunner

from archrepair_client import NoApiKey, NotConfigured, config
from archrepair_client.cli import app
from archrepair_client.config import find_access
from archrepair_client.display import Display
from archrepair_client.running import RunningService, note_service
from archrepair_client.transfers import Transfer


@pytest.fixture
def run(live, monkeypatch, tmp_path):
    monkeypatch.setenv("ARCHREPAIR_URL", live.url)
    monkeypatch.setenv("ARCHREPAIR_API_KEY", live.key)
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0, stdin=None):
        done = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        assert done.exit_code == code, done.output
        return done

    return run


def test_a_repair_is_watched_to_its_end(run, files, tmp_path):
    done = run("repair", files.model(), "--data", files.data("meet_the_gates"), "-m", "run=cli", "--watch")
    assert "verdict   pass" in done.stdout
    assert "pass          test.accuracy >= before + 0.01  (it is pass: 1, 2)" in done.stdout
    assert (tmp_path / "archrepair-out" / "resnet18.repaired.pt").read_text() == "{} pass"
    assert (tmp_path / "archrepair-out" / "report.html").is_file()
    job = done.stdout.split()[1]
    assert run("jobs", "list", "--metadata", "run=cli", "-q").stdout == f"{job}\n"
    assert run("jobs", "list", "-n", "1").stdout.split("\t")[:4] == [job, "repair", "succeeded", "pass"]
    assert json.loads(run("jobs", "show", job, "--json").stdout)["verdict"] == "pass"
    log = run("jobs", "logs", job, "--tail", "50").stdout
    assert "service job.started" in log
    assert run("jobs", "logs", job, "--follow").stdout == log
    followed = run("jobs", "logs", job, "-f", "--json").stdout.splitlines()
    assert [json.loads(line) for line in followed] == json.loads(run("jobs", "logs", job, "--json").stdout)
    assert json.loads(run("jobs", "events", job).stdout.splitlines()[-1])["type"] == "job.succeeded"
    assert run("jobs", "watch", job, "-q").stdout == f"{job}\n"
    assert run("report", "show", job).stdout == "{} pass\n"
    again = run("jobs", "retry", job, "-q").stdout.strip()
    assert json.loads(run("jobs", "watch", again, "--json").stdout)["retry_of"] == job
    done = run("jobs", "delete", job, again)
    assert (done.stdout, done.stderr.count("deleted")) == ("", 2)
    assert "job.not_found" in run("jobs", "show", job, code=2).stderr


def test_the_exit_code_is_the_verdict_and_a_cancelled_job_has_its_own(run, files):
    done = run("repair", files.model(), "-d", files.data("fail_a_gate"), "--watch", "--json", code=1)
    assert json.loads(done.stdout)["verdict"] == "fail"
    job = run("repair", files.model(), "-d", files.data("run_for_ever"), "-q").stdout.strip()
    assert "goes on" in run("jobs", "watch", job, "--timeout", "1s", code=5).stderr
    assert run("jobs", "cancel", job, "-q").stdout == f"{job}\n"
    run("jobs", "watch", job, code=9)
    assert "job.nothing_to_judge" in run("jobs", "verdict", job, "--gate", "test.accuracy >= 0.9", code=2).stderr


def test_a_spec_names_files_beside_it_and_options_go_before_it(run, files, tmp_path):
    (tmp_path / "specs").mkdir()
    files.data("succeed").rename(tmp_path / "specs" / "field.npz")
    spec = tmp_path / "specs" / "repair.yaml"
    spec.write_text("datasets: {repair: field.npz, test: 'builtin:digits'}\nseed: 7\nrepair: {budget_seconds: 9}\n")
    words = ("repair", files.model(), "--spec", spec, "--set", "repair.budget_seconds=5", "--set", "repair.level=block")
    asked = json.loads(run(*words, "--gate", "test.accuracy > before", "--json").stdout)["spec"]
    assert asked["datasets"]["repair"] == "upload:repair"
    assert asked["datasets"]["test"] == "builtin:digits"
    assert (asked["seed"], asked["repair"]["budget_seconds"], asked["repair"]["level"]) == (7, 5, "block")
    assert asked["gates"] == ["test.accuracy > before"]
    localized = json.loads(run("localize", files.model(), "--spec", spec, "--json").stdout)
    assert localized["kind"] == "localize"
    evaluated = json.loads(run("evaluate", files.model(), "--data", files.data(), "--json").stdout)
    assert (evaluated["kind"], evaluated["spec"]["datasets"]["test"]) == ("evaluate", "upload:test")
    assert evaluated["spec"]["datasets"]["repair"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["repair", "model.pt", "--data", "x=1"], "1 is not a file"),
        (["repair", "MODEL"], "no data: say --data FILE"),
        (["evaluate", "MODEL", "--data", "repair=DATA"], "no data: say --data FILE, or `datasets.test`"),
        (["repair", "MODEL", "--data", "DATA", "--data", "repair=DATA"], "names repair twice"),
        (["repair", "MODEL", "--data", "DATA", "--set", "seed"], "is not FIELD=VALUE"),
        (["repair", "MODEL", "--data", "DATA", "--set", "seed=1", "--set", "seed.of=1"], "seed has no fields"),
        (["repair", "MODEL", "--data", "DATA", "--metadata", "x"], "--metadata 'x' is not KEY=VALUE"),
        (["repair", "MODEL", "--spec", "DATA"], "must end in one of .json, .toml, .yaml, .yml"),
        (["repair", "MODEL", "--local", "--data", "builtin:digits"], "needs --data with a file"),
        (["repair", "MODEL", "--local", "--data", "DATA", "-m", "a=b"], "metadata mean something to a service only"),
        (["--key-file", "nowhere", "jobs", "list"], "--key-file nowhere cannot be read"),
        (["keys", "create", "ci", "--scope", "jobs:wrte"], "jobs:wrte"),
        (["models", "add", "MODEL", "--input-shape", "3,8"], "is not like 3x224x224"),
        (["login", "example.com"], "is no URL"),
    ],
)
def test_mistakes_are_told_in_words_and_end_with_2(run, files, words, said):
    names = {"MODEL": files.model(), "DATA": files.data()}
    done = run(*(names.get(word, str(word).replace("DATA", str(names["DATA"]))) for word in words), code=2)
    assert done.stdout == ""
    assert said in done.stderr


@pytest.mark.slow
def test_models_data_and_keys_have_their_commands(run, files):
    model = run("models", "add", files.model(), "--input-shape", "3x8x8", "-q").stdout.strip()
    assert run("models", "blocks", model).stdout.splitlines()[0].split("\t")[:2] == ["layer1", "Sequential"]
    assert json.loads(run("models", "show", model, "--json").stdout)["state"] == "ready"
    assert model in run("models", "list", "-q").stdout.split()
    dataset = run("datasets", "add", files.data(), "--name", "signs", "-q").stdout.strip()
    assert run("datasets", "list").stdout.split("\t")[:3] == [dataset, "ready", "signs"]
    assert json.loads(run("datasets", "show", dataset, "--json").stdout)["name"] == "signs"
    run("repair", model, "--data", dataset, "--watch", "-q")
    run("datasets", "delete", dataset)
    run("models", "delete", model)
    done = run("keys", "create", "ci", "--expires-in", "90d")
    assert done.stdout.startswith("ar_")
    assert "models:write" in done.stderr
    key = json.loads(run("keys", "list", "--json").stdout)[0]
    assert (key["name"], key["key"]) == ("ci", None)
    run("keys", "delete", key["id"])


def test_a_report_is_opened_in_the_browser(run, files, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    job = run("repair", files.model(), "-d", files.data("meet_the_gates"), "--watch", "-q").stdout.strip()
    done = run("report", "open", job, "--out", tmp_path / "it.html")
    assert opened == [(tmp_path / "it.html").as_uri()]
    assert done.stdout == f"{tmp_path / 'it.html'}\n"


def test_a_login_is_checked_kept_for_oneself_and_used(run, live, monkeypatch, tmp_path):
    monkeypatch.delenv("ARCHREPAIR_URL")
    monkeypatch.delenv("ARCHREPAIR_API_KEY")
    assert "which service?" in run("jobs", "list", code=2).stderr
    assert "auth.invalid_key" in run("login", live.url, stdin="ar_wrong_key\n", code=6).stderr
    run("login", f"{live.url}/v1/", stdin=f"{live.key}\n")
    path = config.config_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    run("jobs", "list")
    path.write_text("url = ")
    assert "cannot be read" in run("jobs", "list", code=2).stderr


def test_a_flag_goes_before_the_environment_before_the_file_before_this_machine(monkeypatch, tmp_path):
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    (state_dir / "key").write_text("of-machine\n")
    note_service(state_dir, RunningService("http://machine:1", str(state_dir / "key"), os.getpid()))
    with pytest.raises(NotConfigured, match="archrepair up"):
        find_access()
    monkeypatch.setenv("ARCHREPAIR_STATE_DIR", str(state_dir))
    found = find_access()
    assert (found.url, found.api_key) == ("http://machine:1", "of-machine")
    config.write_config("http://file:1", "of-file")
    assert (find_access().url, find_access().api_key) == ("http://file:1", "of-file")
    monkeypatch.setenv("ARCHREPAIR_API_KEY", "of-environment")
    assert (find_access().url, find_access().api_key) == ("http://file:1", "of-environment")
    monkeypatch.setenv("ARCHREPAIR_URL", "http://environment:1/v1/")
    assert (find_access().url, find_access().api_key) == ("http://environment:1", "of-environment")
    assert find_access(api_key="flag").api_key == "flag"
    # No key goes to a service it was not given for.
    with pytest.raises(NoApiKey, match="no API key for http://flag:1"):
        find_access("http://flag:1")
    monkeypatch.delenv("ARCHREPAIR_API_KEY")
    with pytest.raises(NoApiKey, match="no API key for http://environment:1"):
        find_access()
    monkeypatch.setenv("ARCHREPAIR_URL", "http://file:1")
    assert find_access().api_key == "of-file"
    assert "of-file" not in repr(find_access())


def test_a_log_is_told_a_line_now_and_then_and_no_bars(capsys):
    with Display() as display:
        for done in range(0, 1001):
            display.transfer(Transfer("model.pt", done * 1000, 1_000_000))
    assert capsys.readouterr().err.splitlines() == ["model.pt: 0.0 of 1.0 MB", "model.pt: 1.0 of 1.0 MB"]


def test_a_reader_who_has_had_enough_does_not_change_the_exit_code():
    program = "from archrepair_client.output import write_lines; write_lines(map(str, range(100_000))); exit(5)"
    command = f"{sys.executable} -P -c '{program}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (5, "0\n", "")


@pytest.mark.slow
def test_a_repair_runs_here_without_a_service(tmp_path):
    """No service is known, and none is needed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    make = [sys.executable, "-P", "-m", "archrepair_core.demo.digits", tmp_path]
    subprocess.run(make, env=environment, check=True)
    words = [
        "repair",
        tmp_path / "model.pt",
        "--data",
        tmp_path / "repair.npz",
        "--data",
        f"test={tmp_path / 'test.npz'}",
    ]
    options = ["--set", "repair.method=bn", "--gate", "test.accuracy > before", "--local", "--out", tmp_path / "out"]
    command = [sys.executable, "-P", "-m", "archrepair_client", *words, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "repaired, verdict pass" in done.stdout
    assert (tmp_path / "out" / "repaired.pt").is_file()
