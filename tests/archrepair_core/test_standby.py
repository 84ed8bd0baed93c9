import io
import json
import os
import subprocess
import sys

import pytest

from archrepair_core.events import EventPipe
from archrepair_core.standby import problem_of_crash, run_job

STANDBY = (sys.executable, "-P", "-m", "archrepair_core.standby")


def standby(request):
    """What a standby process says and logs when it reads these bytes and then the end of its input."""
    done = subprocess.run(STANDBY, input=request, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def request_for(tmp_path, **changes):
    for name in ("model.pt", "data.npz"):
        (tmp_path / name).write_bytes(b"this is no archive" * 100)
    return {
        "model": str(tmp_path / "model.pt"),
        "datasets": {"upload:repair": str(tmp_path / "data.npz")},
        "spec": {"datasets": {"repair": "upload:repair"}},
        "work_dir": str(tmp_path),
        "out_dir": str(tmp_path),
        **changes,
    }


@pytest.mark.slow
def test_a_standby_that_is_not_needed_ends_silently():
    events, _ = standby(b"")
    assert events == [{"type": "ready"}]


@pytest.mark.slow
def test_a_standby_says_what_is_wrong_with_an_upload_and_exits_cleanly(tmp_path):
    events, log = standby(json.dumps(request_for(tmp_path)).encode() + b"\n")
    assert events[0] == {"type": "ready"}
    error = events[-1]
    assert (error["type"], error["category"], error["phase"]) == ("error", "user", "ingesting")
    assert error["code"].split(".")[0] in ("model", "dataset")
    assert error["detail"]
    assert error["hint"]
    assert "Traceback" in log


def test_the_ranking_is_told_before_the_end(digits, tmp_path):
    said, spec = io.StringIO(), {"kind": "localize", "datasets": {"repair": "upload:repair"}}
    files = {"upload:repair": str(digits / "repair.npz")}
    request = request_for(tmp_path, model=str(digits / "model.pt"), datasets=files, spec=spec)
    run_job(request, EventPipe(said))
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [event["type"] for event in events][-3:] == ["localization", "resolved_spec", "result"]
    told, result = events[-3], events[-1]["result"]
    assert [(row["name"], row["score"]) for row in told["blocks"]] == [
        (row["name"], row["score"]) for row in result["blocks"]
    ]
    assert (told["method"], told["fault"]) == (result["method"], result["kind"])


def test_an_unexpected_exception_names_its_type_and_nothing_of_the_customers(tmp_path, capsys):
    said = io.StringIO()
    run_job(request_for(tmp_path, spec={"datasets": {"repair": "a secret", "bogus": 1}}), EventPipe(said))
    (event,) = map(json.loads, said.getvalue().splitlines())
    assert (event["type"], event["code"], event["phase"]) == ("error", "platform.engine_failed", "ingesting")
    assert "ValidationError" in event["detail"]
    assert "secret" not in json.dumps(event)
    assert "Traceback" in capsys.readouterr().err


def test_running_out_of_memory_is_said_as_such():
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 GB")):
        assert "memory" in problem_of_crash(error)["detail"]
    assert "memory" not in problem_of_crash(ValueError("x"))["detail"]
