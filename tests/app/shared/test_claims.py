"""Who is next: priority, fair share, quotas, queues; and what is said of it."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.keys import ensure_project
from app.shared.causes import CAUSES, RETRIES
from app.shared.claims import claim_job
from app.shared.db import db_now
from app.shared.jobs import HELD, Claim, fail_job, finish_job, submit_job
from app.shared.queueing import Look, Looks, Place, expected_wait_seconds, queue_places
from app.shared.reaping import end_overdue, reap_expired
from app.shared.tables import Attempt, Job, Model, Project, WorkerRow
from app.shared.workers import (
    FORGOTTEN_SECONDS,
    LIVE_SECONDS,
    Worker,
    note_draining,
    note_worker,
    rehome_jobs,
)

Sessions = sessionmaker[Session]
CPU_WORKER = Worker("box:1:A", ("cpu",), "cpu", "0.1")
GPU_WORKER = Worker("box:2:B", ("gpu", "cpu"), "NVIDIA T4", "0.1")


@pytest.fixture
def submit(sessions: Sessions) -> Callable[..., str]:
    """Submits a job of the named project, later than those before, and gives its id."""
    clock = iter(range(1, 10_000_000))

    def submit_one(project: str = "default", kind: str = "repair", **options: Any) -> str:
        with sessions.begin() as session:
            project_id = ensure_project(session, project).id
            model_id = "mdl_" + project.rjust(26, "0")
            if session.get(Model, model_id) is None:
                session.add(Model(id=model_id, project_id=project_id, filename="m.pt", sha256="0" * 64, size_bytes=1,
                                  storage_key="blobs/none"))  # fmt: skip
                session.flush()
            asked = {"spec": {"kind": kind}, **options}
            job = submit_job(session, project_id=project_id, model_id=model_id, kind=kind, **asked)
            job.created_at = 1e9 + next(clock)
            return job.id

    return submit_one


def claim(sessions: Sessions, owner: str = "w", **options: Any) -> Claim | None:
    with sessions.begin() as session:
        return claim_job(session, owner=owner, lease_seconds=60, **options)


def ids_claimed(sessions: Sessions, number: int, **options: Any) -> list[str]:
    found = [claim(sessions, **options) for _ in range(number)]
    return [held.job_id for held in found if held]


def note(sessions: Sessions, *workers: Worker) -> None:
    with sessions.begin() as session:
        for worker in workers:
            note_worker(session, worker)


def set_quota(sessions: Sessions, project: str, running_jobs: int) -> None:
    with sessions.begin() as session:
        ensure_project(session, project).quotas = {"running_jobs": running_jobs}


def places(sessions: Sessions, **options: Any) -> dict[str, Place]:
    with sessions() as session:
        return queue_places(session, session.scalars(select(Job)).all(), Look(**options))


def test_a_shared_look_asks_once_and_again_for_a_job_it_has_not_seen(sessions: Sessions, submit):
    first, looks = submit("one"), Looks(None, seconds=60)
    asked: list[str] = []

    def look_at(job_id: str) -> int | None:
        with sessions() as session:
            job = session.get_one(Job, job_id)
            event.listen(session.get_bind(), "before_cursor_execute", note)
            place = queue_places(session, [job], looks.current())[job_id]
            event.remove(session.get_bind(), "before_cursor_execute", note)
        return place.position

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    assert look_at(first) == 1
    assert asked
    asked.clear()
    assert look_at(first) == 1
    assert asked == []
    assert look_at(submit("one")) == 2
    assert asked
    assert Looks(None, seconds=0).current() is not looks.current()


def test_a_project_with_one_job_does_not_wait_for_anothers_thousand(sessions: Sessions, submit):
    many = [submit("large") for _ in range(4)]
    one = submit("small")
    assert ids_claimed(sessions, 3) == [many[0], one, many[1]]


def test_priority_comes_before_fair_share(sessions: Sessions, submit):
    submit("small")
    urgent = [submit("large", priority=1) for _ in range(2)]
    assert ids_claimed(sessions, 2) == urgent


def test_positions_are_the_order_of_the_claims(sessions: Sessions, submit):
    submit("c")
    ids_claimed(sessions, 1)
    for project, priority in zip("aababcccab", (0, 0, 0, 1, 0, 0, 0, 2, 0, 0), strict=True):
        submit(project, priority=priority)
    found = {job_id: place.position for job_id, place in places(sessions).items() if place.position}
    assert sorted(found, key=found.__getitem__) == ids_claimed(sessions, 10)
    assert sorted(found.values()) == list(range(1, 11))


def test_a_project_at_its_quota_waits_but_its_models_are_looked_at(sessions: Sessions, submit):
    set_quota(sessions, "bounded", 1)
    first, second = submit("bounded"), submit("bounded")
    look, other = submit("bounded", kind="inspect", priority=1), submit("free")
    assert ids_claimed(sessions, 4) == [look, first, other]
    assert places(sessions)[second].position == 1
    with sessions.begin() as session:
        held = session.get_one(Job, first)
        done = Claim(first, 1, "w", "repair", {}, held.model_id, "", "", ())
        assert finish_job(session, done, status="succeeded", cause="succeeded")
    assert ids_claimed(sessions, 1) == [second]


def test_the_services_quota_is_for_projects_without_one_of_their_own(sessions: Sessions, submit):
    set_quota(sessions, "generous", 3)
    for _ in range(4):
        submit("generous")
        submit("default")
    taken = ids_claimed(sessions, 8, running_jobs=1)
    with sessions() as session:
        projects = {row.id: row.name for row in session.execute(select(Project.id, Project.name))}
        counts = Counter(projects[session.get_one(Job, job_id).project_id] for job_id in taken)
    assert counts == {"generous": 3, "default": 1}


def test_a_worker_takes_jobs_of_its_queues_only(sessions: Sessions, submit):
    gpu, cpu = submit(hardware="gpu"), submit(hardware="cpu")
    assert ids_claimed(sessions, 2, queues=("cpu",)) == [cpu]
    assert ids_claimed(sessions, 2, queues=("gpu", "cpu")) == [gpu]


def queue_of(sessions: Sessions, job_id: str) -> str:
    with sessions() as session:
        return session.get_one(Job, job_id).queue


def test_auto_takes_a_gpu_where_a_worker_has_one_and_waits_for_none(sessions: Sessions, submit):
    assert queue_of(sessions, submit()) == "cpu"
    note(sessions, CPU_WORKER, GPU_WORKER)
    waiting, asked_for = submit(), submit(hardware="gpu")
    assert queue_of(sessions, waiting) == "gpu"
    with sessions.begin() as session:
        note_draining(session, GPU_WORKER.name)
        rehome_jobs(session)
    assert (queue_of(sessions, waiting), queue_of(sessions, asked_for)) == ("cpu", "gpu")
    assert queue_of(sessions, submit()) == "cpu"


def test_jobs_that_came_before_the_only_gpu_worker_are_served_by_it(sessions: Sessions, submit):
    job_id = submit()
    note(sessions, Worker("box:3:C", ("gpu",), "NVIDIA T4", "0.1"))
    with sessions.begin() as session:
        rehome_jobs(session)
    assert ids_claimed(sessions, 1, queues=("gpu",)) == [job_id]


def test_a_silent_worker_serves_nothing_and_is_forgotten_after_a_day(sessions: Sessions, submit):
    note(sessions, GPU_WORKER)
    with sessions.begin() as session:
        session.execute(update(WorkerRow).values(seen_at=db_now() - LIVE_SECONDS - 1))
    assert queue_of(sessions, submit()) == "cpu"
    with sessions.begin() as session:
        session.execute(update(WorkerRow).values(seen_at=db_now() - FORGOTTEN_SECONDS - 1))
    note(sessions, CPU_WORKER)
    with sessions() as session:
        assert session.scalars(select(WorkerRow.name)).all() == [CPU_WORKER.name]


@pytest.mark.slow
def test_eight_workers_claim_a_thousand_jobs_once_each_and_fairly(sessions: Sessions, submit):
    with sessions.begin() as session:
        for name in "abcd":
            project = ensure_project(session, name)
            session.add(Model(id=f"mdl_{name}", project_id=project.id, filename="m", sha256="0", size_bytes=1,
                              storage_key="x"))  # fmt: skip
            session.flush()
            session.add_all(
                Job(id=f"job_{name}{number:04d}", project_id=project.id, kind="repair", status="queued", spec={},
                    model_id=f"mdl_{name}")
                for number in range(250)
            )  # fmt: skip
    taken: list[str] = []
    unfair: list[Any] = []

    def work(owner: str) -> None:
        while True:
            try:
                with sessions.begin() as session:
                    held = claim_job(session, owner=owner, lease_seconds=600)
                    # In the same transaction: nobody else claims meanwhile.
                    running = select(Job.project_id, func.count()).where(Job.status.in_(HELD)).group_by(Job.project_id)
                    counts = [row[1] for row in session.execute(running)]
            except OperationalError:  # SQLite has no queue for its one writer: somebody may wait too long
                continue
            if held is None:
                return
            taken.append(held.job_id)
            if max(counts) - min(counts) > 1 and len(counts) == 4:
                unfair.append(counts)

    threads = [threading.Thread(target=work, args=(f"worker-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 1000
    assert unfair == []


def ran(sessions: Sessions, job_id: str, seconds: float, budget: Any = None) -> None:
    """As if the job had just succeeded after so many seconds."""
    resolved = {"repair": {"budget_seconds": budget}} if budget else None
    ended = {"status": "succeeded", "started_at": db_now() - seconds, "finished_at": db_now()}
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(ended | {"resolved_spec": resolved}))


def test_without_a_basis_no_time_is_told(sessions: Sessions, submit):
    first, second = submit(), submit()
    found = places(sessions)
    assert found[first] == Place(1, None, None), "no worker"
    note(sessions, CPU_WORKER)
    found = places(sessions)
    assert found[first].start_at is not None, "a worker is free"
    assert found[first].finish_at is None
    assert found[second].start_at is None, "nobody knows how long the first takes"


def test_times_come_from_the_last_runs_of_the_kind(sessions: Sessions, submit):
    note(sessions, CPU_WORKER)
    for seconds in (80, 100, 120):
        ran(sessions, submit(), seconds)
    running = submit()
    ids_claimed(sessions, 1)
    waiting = [submit(), submit()]
    found = places(sessions)
    with sessions() as session:
        now = session.scalars(select(db_now())).one()
        assert expected_wait_seconds(session, "cpu") == pytest.approx(300, abs=5)
        assert expected_wait_seconds(session, "gpu") is None
    assert found[running].finish_at == pytest.approx(now + 100, abs=5)
    assert [found[job_id].start_at for job_id in waiting] == [pytest.approx(now + at, abs=5) for at in (100, 200)]
    assert found[waiting[1]].finish_at == pytest.approx(now + 300, abs=5)


def test_a_budget_scales_what_the_last_runs_took_and_alone_is_a_basis(sessions: Sessions, submit):
    note(sessions, CPU_WORKER)
    spec = {"kind": "repair", "repair": {"budget_seconds": 600}}
    alone = submit(spec=spec)
    with sessions() as session:
        now = session.scalars(select(db_now())).one()
    assert places(sessions)[alone].finish_at == pytest.approx(now + 600, abs=5)
    ran(sessions, alone, 75, budget=60)
    again = submit(spec=spec)
    assert places(sessions)[again].finish_at == pytest.approx(now + 750, abs=10)


@pytest.mark.parametrize("budget", ["auto", True, {"a": 1}, [1], -5])
def test_an_engine_that_tells_nonsense_of_its_budget_does_no_harm(sessions: Sessions, submit, budget):
    note(sessions, CPU_WORKER)
    ran(sessions, submit(), 50, budget=budget)
    job_id = submit()
    assert places(sessions)[job_id].finish_at is not None


def test_a_run_that_takes_longer_than_it_should_has_no_end_in_sight(sessions: Sessions, submit):
    ran(sessions, submit(), 10)
    job_id = submit()
    ids_claimed(sessions, 1)
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(started_at=db_now() - 20))
    assert places(sessions)[job_id].finish_at is None


def job_of(sessions: Sessions, job_id: str) -> Job:
    with sessions() as session:
        return session.get_one(Job, job_id)


def pass_deadline(sessions: Sessions, job_id: str) -> None:
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(deadline_at=db_now() - 1))


def test_a_job_whose_deadline_comes_while_it_waits_fails_and_is_never_claimed(sessions: Sessions, submit):
    job_id = submit(timeout_seconds=3600)
    pass_deadline(sessions, job_id)
    assert claim(sessions) is None
    with sessions.begin() as session:
        assert end_overdue(session) == [job_id]
        assert end_overdue(session) == []
    job = job_of(sessions, job_id)
    assert job.error is not None
    assert (job.status, job.error["code"], job.error["category"]) == ("failed", "job.deadline_exceeded", "user")
    assert job.finished_at is not None


def test_a_claim_says_how_long_the_job_still_has(sessions: Sessions, submit):
    submit(timeout_seconds=100)
    submit()
    first, second = claim(sessions), claim(sessions)
    assert first is not None
    assert second is not None
    assert first.seconds_left == pytest.approx(100, abs=5)
    assert second.seconds_left is None


def test_a_lost_job_past_its_deadline_is_not_tried_again(sessions: Sessions, submit):
    job_id = submit(timeout_seconds=100)
    claim(sessions)
    pass_deadline(sessions, job_id)
    with sessions.begin() as session:
        session.execute(update(Job).values(lease_until=db_now() - 1))
        assert reap_expired(session) == [job_id]
    assert (job_of(sessions, job_id).error or {})["code"] == "job.deadline_exceeded"


@pytest.mark.parametrize(
    ("code", "category", "statuses", "cause"),
    [
        ("worker.engine_crashed", "platform", ["queued", "failed"], "engine_crashed"),
        ("platform.store_unavailable", "platform", ["queued", "queued", "failed"], "platform_error"),
        ("platform.worker_failed", "platform", ["failed"], "platform_error"),
        ("worker.engine_killed", "platform", ["queued", "failed"], "engine_crashed"),
        ("worker.out_of_memory", "platform", ["failed"], "oom"),
        ("model.frozen_graph", "user", ["failed"], "user_error"),
        ("job.deadline_exceeded", "user", ["failed"], "deadline"),
    ],
)
def test_only_what_may_end_better_is_tried_again(sessions: Sessions, submit, code, category, statuses, cause):
    job_id = submit()
    seen = []
    while (held := claim(sessions)) is not None:
        with sessions.begin() as session:
            fail_job(session, held, error={"code": code, "category": category, "detail": "d"})
        seen.append(job_of(sessions, job_id).status)
    assert seen == statuses
    with sessions() as session:
        assert session.scalars(select(Attempt.cause).order_by(Attempt.id)).all() == [cause] * len(statuses)
    assert job_of(sessions, job_id).attempt == len(statuses)


def test_every_cause_says_whether_it_is_tried_again():
    assert set(CAUSES) < set(RETRIES)
