"""A cancel that keeps the best so far: the engine is asked once, has a while, and is ended when it does not answer."""

import os
import threading
import time
from functools import partial

import pytest

from worker.supervisor import run_next_job


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def cancelled(service, eventually):
    """Runs a job, cancels it with keep_best once the engine is at work; gives the job and the engine's pid."""

    def run(behave, *, then=lambda _job_id: None, keep_best_seconds=30.0, **spec):
        bench = service.with_limits(keep_best_seconds=keep_best_seconds).bench
        job_id = service.submit(behave, spec=spec)
        thread = threading.Thread(target=partial(run_next_job, bench))
        thread.start()
        pid = int(eventually(lambda: service.job(job_id).progress)["message"])
        service.cancel(job_id, keep_best=True)
        then(job_id)
        thread.join(15)
        assert not thread.is_alive()
        assert not alive(pid)
        return service.job(job_id)

    return run


def test_a_repair_hands_over_the_best_it_has_and_is_cancelled(service, cancelled):
    job = cancelled("repair_until_asked")
    assert (job.status, job.verdict, job.error) == ("cancelled", "pass", None)
    assert job.result == {"outcome": "repaired", "completion": "partial"}
    assert [phase["name"] for phase in job.phases] == ["repairing", "packaging"]
    files = service.artifacts(job.id)
    assert {name: row.kind for name, (row, _) in files.items()} == {"repaired.pt": "model", "engine.log": "log"}
    assert files["repaired.pt"][1] == b"THE BEST SO FAR"
    assert service.causes(job.id) == ["cancelled"]
    assert len(service.events(job.id, "job.cancelled")) == 1


@pytest.mark.slow
def test_a_repair_that_was_done_anyway_has_succeeded(service, cancelled):
    job = cancelled("repair_until_asked", completion="full")
    assert (job.status, job.verdict) == ("succeeded", "pass")
    assert service.causes(job.id) == ["succeeded"]


@pytest.mark.parametrize("phase", ["ingesting", "baseline", "localizing"])
def test_before_a_repair_has_begun_there_is_nothing_to_keep(service, cancelled, phase):
    asked_at = time.monotonic()
    job = cancelled("repair_until_asked", phase=phase)
    assert time.monotonic() - asked_at < 8
    assert (job.status, job.result, set(service.artifacts(job.id))) == ("cancelled", None, {"engine.log"})


@pytest.mark.parametrize(("behave", "seconds"), [("never_finish", 0.3), ("finish_badly", 30.0), ("run_for_ever", 30.0)])
def test_an_engine_that_hands_over_nothing_is_ended_and_the_job_cancelled(service, cancelled, behave, seconds):
    job = cancelled(behave, keep_best_seconds=seconds)
    assert (job.status, job.verdict, job.result, job.error) == ("cancelled", "not_evaluated", None, None)
    assert set(service.artifacts(job.id)) == {"engine.log"}


def test_cancelled_again_without_it_the_engine_is_ended_at_once(service, cancelled):
    asked_at = time.monotonic()
    job = cancelled("never_finish", then=service.cancel)
    assert time.monotonic() - asked_at < 8
    assert (job.status, job.keep_best, job.result) == ("cancelled", False, None)


def test_a_stopping_worker_does_not_wait_for_it(service, cancelled):
    job = cancelled("never_finish", then=lambda _job_id: service.bench.stopping.set())
    assert (job.status, service.causes(job.id)) == ("cancelled", ["cancelled"])
