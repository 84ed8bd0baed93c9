import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.shared.claims import claim_job
from app.shared.db import db_now
from app.shared.jobs import (
    DONE,
    HELD,
    LOCALIZED,
    TRANSITIONS,
    Claim,
    JobAlreadyDone,
    StoredArtifact,
    finish_job,
    record_localization,
    record_progress,
    record_resolved_spec,
    release_job,
    renew_lease,
    request_cancel,
    submit_job,
)
from app.shared.outbox import relay_outbox
from app.shared.queueing import queue_places, queued_without_ring
from app.shared.reaping import reap_expired
from app.shared.tables import Artifact, Attempt, Job, JobEvent, JobInput, OutboxMessage

Submit = Callable[..., str]


@pytest.fixture
def submit(sessions: sessionmaker[Session], project_id: str, model_id: str) -> Submit:
    """Submits a job and gives its id."""

    def submit_one(**values: Any) -> str:
        repair = JobInput(name="upload:repair", filename="r.npz", sha256="1" * 64, size_bytes=2, storage_key="blobs/r")
        asked = {
            "spec": {"kind": "repair"},
            "kind": "repair",
            "inputs": [repair],
            "metadata": {"git": "8c1f"},
            **values,
        }
        with sessions.begin() as session:
            return submit_job(session, project_id=project_id, model_id=model_id, **asked).id

    return submit_one


def claim(sessions: sessionmaker[Session], owner: str = "worker-1", lease_seconds: float = 60) -> Claim | None:
    with sessions.begin() as session:
        return claim_job(session, owner=owner, lease_seconds=lease_seconds)


def claimed(sessions: sessionmaker[Session], owner: str = "worker-1", lease_seconds: float = 60) -> Claim:
    found = claim(sessions, owner, lease_seconds)
    assert found is not None
    return found


def expire(sessions: sessionmaker[Session], job_id: str) -> None:
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=db_now() - 1))


def load(sessions: sessionmaker[Session], job_id: str) -> Job:
    with sessions() as session:
        return session.get_one(Job, job_id)


def events(sessions: sessionmaker[Session], job_id: str) -> list[str]:
    with sessions() as session:
        return list(session.scalars(select(JobEvent.type).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)))


def causes(sessions: sessionmaker[Session], job_id: str) -> list[tuple[int, str | None]]:
    with sessions() as session:
        rows = session.execute(
            select(Attempt.number, Attempt.cause).where(Attempt.job_id == job_id).order_by(Attempt.id)
        )
        return [(row.number, row.cause) for row in rows]


def cancel(sessions: sessionmaker[Session], job_id: str, *, keep_best: bool = False) -> str:
    with sessions.begin() as session:
        return request_cancel(session, session.get_one(Job, job_id), keep_best=keep_best).status


def test_a_submitted_job_waits_with_an_event_and_a_ring(sessions: sessionmaker[Session], submit: Submit):
    job = load(sessions, submit())
    assert (job.status, job.attempt, job.verdict, job.labels) == ("queued", 0, "not_evaluated", {"git": "8c1f"})
    assert abs(job.created_at - time.time()) < 5
    assert events(sessions, job.id) == ["job.created"]
    with sessions() as session:
        assert session.scalars(select(OutboxMessage.sent_at)).all() == [None]


def test_a_failed_submission_leaves_neither_job_nor_ring(
    sessions: sessionmaker[Session], project_id: str, model_id: str
):
    with sessions() as session:
        submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)
        session.rollback()
    with sessions() as session:
        assert session.scalars(select(Job.id)).all() == []
        assert session.scalars(select(OutboxMessage.id)).all() == []


def test_a_claim_carries_all_that_a_run_needs(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    assert claimed(sessions) == Claim(
        job_id=job_id,
        attempt=1,
        owner="worker-1",
        kind="repair",
        spec={"kind": "repair"},
        model_id="mdl_" + "0" * 26,
        model_storage_key="blobs/none",
        inputs=(("upload:repair", "blobs/r", "r.npz"),),
    )
    job = load(sessions, job_id)
    assert (job.status, job.attempt, job.owner) == ("running", 1, "worker-1")
    assert job.started_at is not None
    assert claim(sessions) is None


def test_jobs_are_claimed_by_priority_then_age(sessions: sessionmaker[Session], submit: Submit):
    first, second, urgent = submit(), submit(), submit()
    with sessions.begin() as session:
        session.get_one(Job, urgent).priority = 1
        session.get_one(Job, second).created_at += 0.001
    with sessions() as session:
        places = [
            queue_places(session, [session.get_one(Job, job_id)])[job_id].position for job_id in (urgent, first, second)
        ]
    assert places == [1, 2, 3]
    assert [claimed(sessions).job_id for _ in range(3)] == [urgent, first, second]


def test_eight_workers_never_claim_the_same_job(sessions: sessionmaker[Session], submit: Submit):
    job_ids = {submit() for _ in range(40)}
    taken: list[str] = []

    def work(owner: str):
        while (found := claim(sessions, owner)) is not None:
            taken.append(found.job_id)

    threads = [threading.Thread(target=work, args=(f"worker-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(job_ids)


def test_progress_builds_the_list_of_phases(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions)
    for phase, percent in (("ingesting", 1.0), ("ingesting", 5.0), ("baseline", 9.0)):
        with sessions.begin() as session:
            assert record_progress(session, held, phase=phase, progress={"percent": percent})
    job = load(sessions, job_id)
    assert [phase["name"] for phase in job.phases] == ["ingesting", "baseline"]
    assert job.phases[0]["finished_at"] == job.phases[1]["started_at"]
    assert job.phases[1]["finished_at"] is None
    assert (job.phase, job.progress) == ("baseline", {"percent": 9.0})


def test_the_ranking_of_the_blocks_is_an_event_of_its_attempt(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions)
    ranking = {"method": "spectrum", "fault": "block", "blocks": [{"name": "layer1", "score": 0.5}]}
    before = load(sessions, job_id).version
    with sessions.begin() as session:
        assert record_localization(session, held, ranking)
        assert not record_localization(session, replace(held, attempt=held.attempt + 1), ranking)
    with sessions() as session:
        told = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == LOCALIZED)).one()
    assert told.data == {**ranking, "attempt": held.attempt}
    assert load(sessions, job_id).version == before + 1


def test_a_heartbeat_moves_the_lease_but_not_the_etag(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions, lease_seconds=1)
    before = load(sessions, job_id)
    with sessions.begin() as session:
        assert renew_lease(session, held, lease_seconds=100) == "held"
    after = load(sessions, job_id)
    assert after.lease_until is not None
    assert after.lease_until > time.time() + 90
    assert after.version == before.version


def test_a_finished_job_shows_what_it_left(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions)
    repaired = StoredArtifact(
        "repaired.pt", "model", "application/octet-stream", 3, "2" * 64, "jobs/x/attempt-1/repaired"
    )
    with sessions.begin() as session:
        assert record_progress(session, held, phase="packaging", progress={"percent": 99.0})
        assert record_resolved_spec(session, held, {"seed": 7})
        assert finish_job(
            session,
            held,
            status="succeeded",
            result={"outcome": "repaired"},
            verdict="pass",
            artifacts=[repaired],
            cause="completed",
        )
    job = load(sessions, job_id)
    assert (job.status, job.verdict, job.resolved_spec["seed"]) == ("succeeded", "pass", 7)
    assert job.resolved_spec["inputs"] == {"upload:repair": {"sha256": "1" * 64, "size_bytes": 2}}
    assert job.lease_until is None
    assert job.finished_at is not None
    assert job.phases[-1]["finished_at"] is not None
    with sessions() as session:
        stored = session.scalars(select(Artifact).where(Artifact.job_id == job_id)).one()
    assert (stored.name, stored.kind, stored.attempt) == ("repaired.pt", "model", 1)
    assert causes(sessions, job_id) == [(1, "completed")]
    assert events(sessions, job_id)[-1] == "job.succeeded"


def test_an_error_says_phase_and_attempt(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions)
    with sessions.begin() as session:
        record_progress(session, held, phase="baseline", progress={})
        finish_job(session, held, status="failed", error={"code": "dataset.empty"}, cause="user_error")
    assert load(sessions, job_id).error == {"code": "dataset.empty", "phase": "baseline", "attempt": 1}


def test_a_worker_that_lost_its_lease_can_write_nothing(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    zombie = claimed(sessions, "zombie")
    expire(sessions, job_id)
    with sessions.begin() as session:
        assert reap_expired(session) == [job_id]
    current = claimed(sessions, "second")
    assert current.attempt == 2
    before = load(sessions, job_id)
    with sessions.begin() as session:
        assert renew_lease(session, zombie, lease_seconds=60) == "lost"
        assert not record_progress(session, zombie, phase="baseline", progress={})
        assert not record_resolved_spec(session, zombie, {})
        assert not release_job(session, zombie)
        late = StoredArtifact("late.pt", "model", "x", 1, "3" * 64, "late")
        assert not finish_job(session, zombie, status="succeeded", artifacts=[late], cause="completed")
    after = load(sessions, job_id)
    assert (after.version, after.status, after.owner) == (before.version, "running", "second")
    with sessions() as session:
        assert session.scalars(select(Artifact.id)).all() == []
    assert causes(sessions, job_id) == [(1, "worker_lost"), (2, None)]


def test_the_same_owner_with_an_older_attempt_is_fenced_too(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    first = claimed(sessions, "same")
    expire(sessions, job_id)
    with sessions.begin() as session:
        reap_expired(session)
    claimed(sessions, "same")
    with sessions.begin() as session:
        assert not finish_job(session, first, status="succeeded", cause="completed")


def test_a_lease_that_still_runs_is_not_reaped(sessions: sessionmaker[Session], submit: Submit):
    submit()
    claimed(sessions, lease_seconds=60)
    with sessions.begin() as session:
        assert reap_expired(session) == []


def test_a_short_lease_expires_by_itself(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    claimed(sessions, lease_seconds=0.05)
    time.sleep(0.1)
    with sessions.begin() as session:
        assert reap_expired(session) == [job_id]


def test_a_lost_job_starts_again_and_fails_after_the_last_attempt(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit(max_attempts=2)
    statuses = []
    for _ in range(2):
        held = claimed(sessions)
        with sessions.begin() as session:
            record_progress(session, held, phase="repairing", progress={"percent": 50.0})
        expire(sessions, job_id)
        with sessions.begin() as session:
            reap_expired(session)
        statuses.append(load(sessions, job_id).status)
    assert statuses == ["queued", "failed"]
    job = load(sessions, job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"], job.error["attempt"]) == ("worker.lost", "platform", 2)
    assert job.error["phase"] == "repairing"
    assert job.phases[-1]["finished_at"] is not None


def test_a_requeued_job_looks_like_one_that_waits_and_rings(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions)
    with sessions.begin() as session:
        record_progress(session, held, phase="baseline", progress={"percent": 5.0})
        relay_ids = session.scalars(select(OutboxMessage.id)).all()
    expire(sessions, job_id)
    with sessions.begin() as session:
        reap_expired(session)
    job = load(sessions, job_id)
    assert (job.phase, job.phases, job.progress, job.started_at, job.owner) == (None, [], None, None, None)
    with sessions() as session:
        assert len(session.scalars(select(OutboxMessage.id)).all()) == len(relay_ids) + 1


def test_a_preempted_attempt_is_not_counted(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit(max_attempts=1)
    held = claimed(sessions, "first")
    with sessions.begin() as session:
        assert release_job(session, held)
    assert (load(sessions, job_id).status, load(sessions, job_id).attempt) == ("queued", 0)
    assert claimed(sessions, "second").attempt == 1
    assert causes(sessions, job_id) == [(1, "preempted"), (1, None)]
    with sessions.begin() as session:
        assert not finish_job(session, held, status="succeeded", cause="completed")


def test_a_preempted_job_that_was_being_cancelled_is_cancelled(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions)
    cancel(sessions, job_id)
    with sessions.begin() as session:
        assert release_job(session, held)
    assert load(sessions, job_id).status == "cancelled"


def test_a_waiting_job_is_cancelled_at_once_and_never_claimed(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    assert cancel(sessions, job_id) == "cancelled"
    assert load(sessions, job_id).finished_at is not None
    assert claim(sessions) is None


def test_a_running_job_is_asked_to_stop_and_its_worker_hears_it(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    held = claimed(sessions)
    assert cancel(sessions, job_id, keep_best=True) == "cancelling"
    assert cancel(sessions, job_id, keep_best=True) == "cancelling", "asking twice is no error"
    with sessions.begin() as session:
        assert renew_lease(session, held, lease_seconds=60) == "keep_best_requested"
    assert cancel(sessions, job_id) == "cancelling", "asked without keep_best, it need not be kept any more"
    assert cancel(sessions, job_id, keep_best=True) == "cancelling", "which cannot be taken back"
    with sessions.begin() as session:
        assert renew_lease(session, held, lease_seconds=60) == "cancel_requested"
        assert finish_job(session, held, status="cancelled", cause="cancelled")
    job = load(sessions, job_id)
    assert (job.status, job.keep_best) == ("cancelled", False)
    assert events(sessions, job_id).count("job.cancelling") == 1


def test_a_cancelling_job_whose_worker_died_is_cancelled(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    claimed(sessions)
    cancel(sessions, job_id)
    expire(sessions, job_id)
    with sessions.begin() as session:
        assert reap_expired(session) == [job_id]
    assert load(sessions, job_id).status == "cancelled"
    assert causes(sessions, job_id) == [(1, "worker_lost")]


@pytest.mark.parametrize("status", DONE)
def test_a_job_that_has_ended_cannot_be_cancelled(sessions: sessionmaker[Session], submit: Submit, status: str):
    job_id = submit()
    held = claimed(sessions)
    with sessions.begin() as session:
        finish_job(session, held, status=status, cause="completed")
    version = load(sessions, job_id).version
    with pytest.raises(JobAlreadyDone, match=status):
        cancel(sessions, job_id)
    assert load(sessions, job_id).version == version


@pytest.mark.parametrize("status", DONE)
def test_a_job_ends_once(sessions: sessionmaker[Session], submit: Submit, status: str):
    submit()
    held = claimed(sessions)
    with sessions.begin() as session:
        assert finish_job(session, held, status=status, cause="completed")
        assert not finish_job(session, held, status="succeeded", cause="completed")


def test_every_change_a_reader_can_see_has_an_event_and_a_new_version(sessions: sessionmaker[Session], submit: Submit):
    job_id = submit()
    seen = [load(sessions, job_id).version]
    held = claimed(sessions)
    seen.append(load(sessions, job_id).version)
    for change in (
        lambda session: record_progress(session, held, phase="baseline", progress={}),
        lambda session: record_resolved_spec(session, held, {}),
        lambda session: request_cancel(session, session.get_one(Job, job_id), keep_best=False),
        lambda session: finish_job(session, held, status="cancelled", cause="cancelled"),
    ):
        with sessions.begin() as session:
            assert change(session)
        seen.append(load(sessions, job_id).version)
    assert seen == sorted(set(seen))
    assert events(sessions, job_id) == [
        "job.created",
        "job.started",
        "job.phase",
        "job.progress",
        "job.resolved_spec",
        "job.cancelling",
        "job.cancelled",
    ]


def test_no_transition_leaves_an_end_and_all_ends_are_reached():
    assert not {source for transition in TRANSITIONS.values() for source in transition.sources} & set(DONE)
    assert {transition.target for transition in TRANSITIONS.values()} == {"queued", *HELD, *DONE}


def test_a_forgotten_ring_is_noticed_and_answered_once(sessions: sessionmaker[Session], submit: Submit):
    def forgotten() -> bool:
        with sessions() as session:
            return queued_without_ring(session)

    assert not forgotten(), "nothing waits"
    submit()
    assert not forgotten(), "the ring is on its way"
    with sessions.begin() as session:
        relay_outbox(session, lambda: None)
    assert not forgotten(), "the ring was sent just now"
    with sessions.begin() as session:
        session.execute(update(OutboxMessage).values(sent_at=db_now() - 60))
    assert forgotten()
    claimed(sessions)
    assert not forgotten()
