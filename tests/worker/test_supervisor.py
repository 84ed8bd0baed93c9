import hashlib
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import obstore
import pytest
from sqlalchemy import select, update

from app.shared import storage
from app.shared.claims import claim_job
from app.shared.jobs import request_cancel
from app.shared.models import record_model, submit_inspection
from app.shared.reaping import reap_expired
from app.shared.tables import Attempt, Job, Model, OutboxMessage
from worker import supervisor
from worker.supervisor import run_next_job

# An outage of S3 is tests/faults/.
on_local_files = pytest.mark.parametrize("stack", ["embedded"], indirect=True)


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def wait_until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def running_engine_pids(service, job_id):
    """The pids a `run_for_ever` engine reports as its progress message."""
    wait_until(lambda: service.job(job_id).progress)
    return [int(pid) for pid in service.job(job_id).progress["message"].split()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_nothing_to_do_when_no_job_waits(service):
    assert run_next_job(service.bench) is False


def test_a_repaired_job_succeeds_with_its_files_in_the_store(service):
    job_id = service.submit("succeed")

    assert run_next_job(service.bench) is True

    job = service.job(job_id)
    assert (job.status, job.verdict, job.result, job.error) == ("succeeded", "pass", {"outcome": "repaired"}, None)
    assert job.resolved_spec == {"resolved": True, "inputs": {"upload:repair": {"sha256": "0", "size_bytes": 4}}}
    assert [phase["name"] for phase in job.phases] == ["ingesting", "packaging"]
    files = service.artifacts(job_id)
    assert {name: row.kind for name, (row, _) in files.items()} == {
        "repaired.pt": "model",
        "report.json": "report",
        "engine.log": "log",
    }
    row, content = files["repaired.pt"]
    assert content == b"MODELDATA"
    assert (row.sha256, row.size_bytes) == (hashlib.sha256(content).hexdigest(), 9)
    assert row.storage_key == f"jobs/{job_id}/attempt-1/repaired.pt"
    assert files["engine.log"][1] == b"a line of the log\n"


@pytest.mark.parametrize("behave", ["succeed", "refuse", "crash", "talk_nonsense"])
def test_the_scratch_directory_is_gone_after_every_ending(service, scratch_root, behave):
    service.submit(behave)
    run_next_job(service.bench)
    service.bench.engines.close()
    assert list(scratch_root.iterdir()) == []


def test_a_refused_model_fails_the_job_with_the_engines_problem_and_the_end_of_the_log(service):
    job_id = service.submit("refuse")
    run_next_job(service.bench)

    job = service.job(job_id)
    assert job.status == "failed"
    log_tail = job.error.pop("log_tail")
    assert job.error == {
        "code": "model.frozen_graph",
        "detail": "frozen",
        "hint": "unfreeze",
        "category": "user",
        "phase": "localizing",
        "attempt": 1,
    }
    assert log_tail == [f"line {number}" for number in range(60, 100)]
    assert service.artifacts(job_id)["engine.log"][1].startswith(b"line 0\nline 1\n")


@pytest.mark.parametrize(
    ("behave", "code", "phase"),
    [
        ("be_killed", "worker.engine_killed", "repairing"),
        ("crash", "worker.engine_crashed", None),
        ("leave", "platform.engine_failed", None),
        ("talk_nonsense", "platform.engine_failed", None),
        ("name_a_path_outside", "platform.engine_failed", None),
        ("publish_a_link", "platform.worker_failed", None),
    ],
)
def test_a_broken_engine_fails_the_job_with_what_happened(service, behave, code, phase):
    job_id = service.submit(behave)
    while run_next_job(service.bench):
        pass

    job = service.job(job_id)
    assert (job.status, job.error["code"], job.error["phase"]) == ("failed", code, phase)
    assert job.error["category"] == "platform"
    assert job.error["hint"]
    assert set(service.artifacts(job_id)) == {"engine.log"}


def test_an_input_missing_from_the_store_fails_the_job_at_once(service):
    job_id = service.submit("succeed")
    obstore.delete(service.bench.store, "blobs/sha256/data")
    run_next_job(service.bench)
    assert service.job(job_id).error["code"] == "platform.input_missing"


def test_a_job_that_runs_too_long_is_ended(service):
    short = service.with_limits(max_runtime_seconds=0.5)
    job_id = service.submit("run_for_ever")
    run_next_job(short.bench)
    assert service.job(job_id).error["code"] == "job.max_runtime_exceeded"


def test_progress_rows_are_throttled_but_every_phase_is_written(service):
    job_id = service.submit("chatter")
    run_next_job(service.bench)

    rows = service.events(job_id, "job.progress")
    assert 3 <= len(rows) < 20, "at least one of each phase"
    assert [event.data["phase"] for event in service.events(job_id, "job.phase")] == [
        "repairing",
        "ingesting",
        "packaging",
    ]


def test_cancel_ends_the_engine_and_its_children_even_when_they_ignore_sigterm(service):
    job_id = service.submit("run_for_ever_with_a_stubborn_child")
    thread = in_thread(partial(run_next_job, service.bench))
    pids = running_engine_pids(service, job_id)
    assert all(map(alive, pids))

    asked_at = time.monotonic()
    with service.bench.sessions.begin() as session:
        request_cancel(session, session.get_one(Job, job_id), keep_best=False)
    thread.join(10)

    assert time.monotonic() - asked_at < 3
    assert service.job(job_id).status == "cancelled"
    assert not any(map(alive, pids[:1]))
    wait_until(lambda: not alive(pids[1]) or _is_zombie(pids[1]))


def _is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_stopping_worker_gives_its_job_back_uncounted(service):
    job_id = service.submit("run_for_ever")
    thread = in_thread(partial(run_next_job, service.bench))
    (pid,) = running_engine_pids(service, job_id)

    service.bench.stopping.set()
    thread.join(5)

    job = service.job(job_id)
    assert (job.status, job.attempt, job.owner) == ("queued", 0, None)
    assert not alive(pid)
    with service.bench.sessions() as session:
        assert session.scalars(select(Attempt.cause)).all() == ["preempted"]
        assert len(session.scalars(select(OutboxMessage)).all()) == 2


def test_a_worker_that_lost_its_lease_stops_its_engine_and_writes_nothing(service):
    job_id = service.submit("run_for_ever")
    thread = in_thread(partial(run_next_job, service.bench))
    (pid,) = running_engine_pids(service, job_id)

    with service.bench.sessions.begin() as session:
        session.execute(update(Job).values(lease_until=1.0))
        assert reap_expired(session) == [job_id]
        second = claim_job(session, owner="worker-2", lease_seconds=60)
    thread.join(5)

    assert second is not None
    job = service.job(job_id)
    assert (job.status, job.attempt, job.owner, job.error) == ("running", 2, "worker-2", None)
    assert not alive(pid)
    assert service.artifacts(job_id) == {}
    assert obstore.list(service.bench.store, "jobs").collect() == []


def test_a_lease_lost_during_the_last_step_leaves_no_file_behind(service):
    """The engine has its result; the database says the job is somebody else's by now."""
    job_id = service.submit("succeed")

    def take_away(bench):
        with bench.sessions.begin() as session:
            session.execute(update(Job).values(owner="worker-2", attempt=2))

    class Thief(type(service.bench.engines)):
        def warm(self):
            if service.job(job_id).status == "running" and self._idle is None and service.job(job_id).resolved_spec:
                take_away(service.bench)
            return super().warm()

    bench = replace(service.bench, engines=Thief(service.bench.engines._start))
    run_next_job(bench)

    assert service.job(job_id).owner == "worker-2"
    assert service.artifacts(job_id) == {}
    assert obstore.list(service.bench.store, "jobs").collect() == []


def test_the_next_engine_is_warm_when_a_job_ends(service):
    service.submit("succeed")
    run_next_job(service.bench)
    assert service.bench.engines._idle is not None
    assert not service.bench.engines._idle.exited()


def test_an_engine_that_died_while_idle_is_replaced_for_the_next_job(service):
    service.bench.engines.warm()
    service.bench.engines._idle.kill()
    job_id = service.submit("succeed")
    run_next_job(service.bench)
    assert service.job(job_id).status == "succeeded"


@on_local_files
def test_a_short_outage_of_the_store_does_not_lose_the_result(service, tmp_path, eventually):
    blocker = tmp_path / "state" / "objects" / "jobs"
    blocker.write_text("a file where a directory has to be")
    job_id = service.submit("succeed")
    thread = in_thread(partial(run_next_job, service.bench))
    eventually(lambda: service.job(job_id).resolved_spec)
    time.sleep(0.3)
    assert service.job(job_id).status == "running"

    blocker.unlink()
    thread.join(10)

    assert service.job(job_id).status == "succeeded"
    assert set(service.artifacts(job_id)) == {"repaired.pt", "report.json", "engine.log"}


@on_local_files
def test_a_stopping_worker_gives_its_job_back_instead_of_waiting_for_the_store(service, tmp_path, eventually):
    (tmp_path / "state" / "objects" / "jobs").write_text("a file where a directory has to be")
    job_id = service.submit("succeed")
    thread = in_thread(partial(run_next_job, service.bench))
    eventually(lambda: service.job(job_id).resolved_spec)
    service.bench.stopping.set()
    thread.join(5)
    assert (service.job(job_id).status, service.job(job_id).attempt) == ("queued", 0)


def model_of(service):
    with service.bench.sessions() as session:
        model = session.get_one(Model, service.model_id)
        return model, model.blocks


def test_an_inspection_makes_the_model_ready_with_facts_and_blocks(service):
    with service.bench.sessions.begin() as session:
        job_id = submit_inspection(session, session.get_one(Model, service.model_id)).id

    assert run_next_job(service.bench) is True

    model, blocks = model_of(service)
    assert service.job(job_id).result == {"outcome": "inspected"}
    assert (model.state, model.error, model.facts["num_blocks"]) == ("ready", None, 1)
    assert (model.facts["format"], model.facts["input_shape_source"]) == ("torchscript", "guessed")
    assert [(block["name"], block["stage"]) for block in blocks] == [("layer1", None), ("layer1.0", "layer1")]


def test_what_a_job_finds_on_real_data_replaces_a_guess(service):
    for behave in ("inspect", "look_on_data", "inspect"):
        service.submit(behave)
        run_next_job(service.bench)
    model, _ = model_of(service)
    assert (model.facts["input_shape"], model.facts["input_shape_source"]) == ([3, 9, 9], "data")


@pytest.mark.parametrize(
    ("behave", "state"), [("refuse", "rejected"), ("refuse_the_data", "inspecting"), ("crash", "inspecting")]
)
def test_only_an_error_of_the_model_itself_rejects_it(service, behave, state):
    service.submit(behave)
    run_next_job(service.bench)
    model, _ = model_of(service)
    assert model.state == state
    if behave == "crash":  # which is tried again
        run_next_job(service.bench)
    if state == "rejected":
        assert (model.error["code"], model.error["hint"]) == ("model.frozen_graph", "unfreeze")
    else:  # nobody really looked at it, so somebody will
        run_next_job(service.bench)
        assert model_of(service)[0].state == "ready"


def test_an_engine_that_crashes_on_looking_rejects_the_model_as_ours_to_explain(service):
    with service.bench.sessions.begin() as session:
        inspection = submit_inspection(session, session.get_one(Model, service.model_id))
        inspection.spec = {"behave": "crash"}
    while run_next_job(service.bench):
        pass
    model, _ = model_of(service)
    assert (model.state, model.error["code"], model.error["category"]) == (
        "rejected", "worker.engine_crashed", "platform")  # fmt: skip


def test_a_model_is_known_while_its_job_still_runs_and_after_it_was_cancelled(service):
    job_id = service.submit("look_and_wait")
    thread = in_thread(partial(run_next_job, service.bench))
    wait_until(lambda: model_of(service)[0].state == "ready")
    with service.bench.sessions.begin() as session:
        request_cancel(session, session.get_one(Job, job_id), keep_best=False)
    thread.join(10)
    assert service.job(job_id).status == "cancelled"
    assert model_of(service)[0].state == "ready"


def test_a_worker_that_lost_its_job_says_nothing_of_the_model(service):
    service.submit("look")
    with service.bench.sessions.begin() as session:
        held = claim_job(session, owner="worker-0", lease_seconds=60)
        session.execute(update(Job).values(attempt=2))
    with service.bench.sessions.begin() as session:
        assert record_model(session, held, {"blocks": [], "input_shape_source": None}) is False
    assert model_of(service)[0].state == "inspecting"


def test_looking_at_a_model_has_a_limit_of_its_own(service):
    limited = service.with_limits(max_inspection_seconds=0.5)
    with service.bench.sessions.begin() as session:
        inspection = submit_inspection(session, session.get_one(Model, service.model_id))
        inspection.spec = {"behave": "run_for_ever"}
    run_next_job(limited.bench)
    model, _ = model_of(service)
    assert (model.state, model.error["code"]) == ("rejected", "job.max_runtime_exceeded")
    assert "MAX_INSPECTION_SECONDS" in model.error["hint"]


@pytest.mark.parametrize("behave", ["crash", "be_killed"])
def test_a_crash_is_tried_again_once(service, behave):
    job_id = service.submit(behave)
    run_next_job(service.bench)
    assert service.job(job_id).status == "queued"
    run_next_job(service.bench)
    assert (service.job(job_id).status, service.job(job_id).attempt) == ("failed", 2)
    assert service.causes(job_id) == ["engine_crashed", "engine_crashed"]


@pytest.mark.parametrize(
    ("behave", "cause"),
    [("run_out_of_memory", "oom"), ("refuse", "user_error"), ("leave", "platform_error")],
)
def test_other_failures_are_final_and_say_their_cause(service, behave, cause):
    job_id = service.submit(behave)
    run_next_job(service.bench)
    assert service.job(job_id).status == "failed"
    assert service.job(job_id).error["hint"]
    assert service.causes(job_id) == [cause]


def test_a_running_job_ends_at_its_deadline_with_its_engine(service):
    job_id = service.submit("run_for_ever", timeout_seconds=1.5)
    thread = in_thread(partial(run_next_job, service.bench))
    (pid,) = running_engine_pids(service, job_id)
    thread.join(10)
    job = service.job(job_id)
    assert (job.status, job.error["code"]) == ("failed", "job.deadline_exceeded")
    assert service.causes(job_id) == ["deadline"]
    assert not alive(pid)


def test_a_job_cancelled_while_its_inputs_are_fetched_never_reaches_the_engine(service, monkeypatch):
    job_id = service.submit("succeed")
    download = storage.download

    def cancel_and_download(store, key, path, *, on_chunk):
        with service.bench.sessions.begin() as session:
            request_cancel(session, session.get_one(Job, job_id), keep_best=False)
        wait_until(lambda: lease_states and lease_states[-1].state == "cancel_requested")
        download(store, key, path, on_chunk=on_chunk)

    lease_states = []
    kept = supervisor.kept_lease

    @contextmanager
    def spied(*args, **options):
        with kept(*args, **options) as lease:
            lease_states.append(lease)
            yield lease

    monkeypatch.setattr(supervisor, "kept_lease", spied)
    monkeypatch.setattr(storage, "download", cancel_and_download)
    run_next_job(service.bench)
    assert service.job(job_id).status == "cancelled"
    assert service.job(job_id).progress is None
    assert service.causes(job_id) == ["cancelled"]
