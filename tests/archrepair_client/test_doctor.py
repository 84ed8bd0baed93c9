"""`archrepair doctor`, as people call it: before the first start, beside a running service, and after its end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from archrepair_client import doctor
from archrepair_client.doctor import NoAnswer, run_doctor
from archrepair_client.running import RunningService, note_service
from tests.servers import free_port


@pytest.fixture(autouse=True)
def _no_server_configured(monkeypatch):
    for name in list(os.environ):
        if name.startswith("ARCHREPAIR_"):
            monkeypatch.delenv(name)


@pytest.mark.slow
def test_before_the_first_start_it_fails_at_nothing_and_makes_nothing(tmp_path):
    words = ["--state-dir", str(tmp_path / "state"), "--port", str(free_port()), "--json"]
    command = [sys.executable, "-P", "-m", "archrepair_client", "doctor", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    found = {finding["name"]: finding["status"] for finding in told["checks"]}
    assert told["status"] == "warn"
    assert {"database": "warn", "broker": "warn", "port": "ok", "torch": "ok"}.items() <= found.items()
    assert len(found) == len(told["checks"]), "what both look at is told once"
    assert not (tmp_path / "state").exists()


@pytest.fixture
def answers(monkeypatch):
    """What the two doctors would say, for what is made of it."""

    def said(of_gateway: str, of_worker: str) -> None:
        words = {"app.doctor": of_gateway, "worker.doctor": of_worker}

        def ask(module, _environment):
            checks = [{"name": name, "status": words[module], "detail": "d", "hint": "h"}
                      for name in ("database", "broker", module)]  # fmt: skip
            return {"object": "checkup", "status": words[module], "version": "1", "checks": checks}

        monkeypatch.setattr(doctor, "_ask", ask)

    return said


@pytest.mark.parametrize(("of_gateway", "of_worker"), [("ok", "ok"), ("ok", "warn"), ("ok", "fail"), ("fail", "ok")])
def test_it_is_well_when_neither_found_a_failure(answers, of_gateway, of_worker, tmp_path, capsys):
    answers(of_gateway, of_worker)
    assert run_doctor(state_dir=tmp_path, host="127.0.0.1", port=1, as_json=False) == (
        "fail" not in (of_gateway, of_worker)
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == [{"ok": "ok", "fail": "FAIL"}[of_gateway], "database", "d", "→", "h"]


def test_a_service_that_says_it_is_up_and_does_not_answer_is_named(answers, tmp_path, capsys):
    answers("ok", "ok")
    (tmp_path / "api-key").write_text("ar_x_y")
    note_service(tmp_path, RunningService("http://127.0.0.1:1", str(tmp_path / "api-key"), 4711))
    assert not run_doctor(state_dir=tmp_path, host="127.0.0.1", port=1, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["checks"][-1]["name"]) == ("fail", "service")
    assert "4711" in told["checks"][-1]["detail"]


def test_the_broker_of_a_running_service_is_asked_for_through_it(answers, gateway, tmp_path, capsys):
    answers("ok", "ok")
    key = gateway.settings.state_dir / "api-key"
    note_service(tmp_path, RunningService(gateway.url, str(key), gateway.process.pid))
    assert run_doctor(state_dir=tmp_path, host="127.0.0.1", port=1, as_json=True)
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"name": "broker", "status": "ok", "detail": "the one of `archrepair up` answers", "hint": ""} in checks


def test_a_doctor_that_does_not_come_to_an_end_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(doctor, "DOCTORS", ("app.no_such_doctor",))
    with pytest.raises(NoAnswer, match=r"app\.no_such_doctor ended with code 1"):
        run_doctor(state_dir=tmp_path, host="127.0.0.1", port=1, as_json=False)
