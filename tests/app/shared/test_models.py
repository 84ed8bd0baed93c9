import threading

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.shared.claims import claim_job
from app.shared.jobs import Claim, finish_job, request_cancel, submit_job
from app.shared.models import (
    ModelInUse,
    delete_model,
    record_model,
    settle_forgotten_models,
    settle_model,
    submit_inspection,
)
from app.shared.tables import Job, Model

Sessions = sessionmaker[Session]
BLOCK = {"name": "layer1.0", "level": "block"}
GUESSED = {"format": "torchscript", "input_shape": [3, 224, 224], "input_shape_source": "guessed", "blocks": [BLOCK]}


def load(sessions: Sessions, model_id: str) -> Model:
    with sessions() as session:
        return session.get_one(Model, model_id)


def inspect(sessions: Sessions, model_id: str) -> str:
    with sessions.begin() as session:
        return submit_inspection(session, session.get_one(Model, model_id), input_shape=[3, 8, 8]).id


def claim(sessions: Sessions) -> Claim:
    with sessions.begin() as session:
        found = claim_job(session, owner="worker-1", lease_seconds=60)
    assert found is not None
    return found


def record(sessions: Sessions, held: Claim, **changes: object) -> bool:
    with sessions.begin() as session:
        return record_model(session, held, GUESSED | changes)


def finish(sessions: Sessions, held: Claim, status: str, error: dict | None = None) -> None:
    with sessions.begin() as session:
        assert finish_job(session, held, status=status, error=error, cause=status)
    with sessions.begin() as session:
        settle_model(session, held.model_id)


def submit(sessions: Sessions, project_id: str, model_id: str) -> str:
    with sessions.begin() as session:
        return submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id).id


def test_an_inspection_overtakes_the_jobs_that_wait(sessions: Sessions, project_id: str, model_id: str):
    repair, inspection = submit(sessions, project_id, model_id), inspect(sessions, model_id)
    held = claim(sessions)
    assert (held.job_id, held.kind, held.spec) == (inspection, "inspect", {"kind": "inspect", "input_shape": [3, 8, 8]})
    assert claim(sessions).job_id == repair


@pytest.mark.parametrize(
    ("known", "found", "kept"),
    [
        ("guessed", "data", "data"),
        ("guessed", "guessed", "guessed"),
        ("given", "data", "given"),
        ("file", "data", "file"),
        ("data", "guessed", "data"),
    ],
)
def test_real_data_beats_a_guess_and_nothing_else(sessions: Sessions, model_id: str, known: str, found: str, kept: str):
    for source, shape in ((known, [1]), (found, [2])):
        inspect(sessions, model_id)
        held = claim(sessions)
        assert record(sessions, held, input_shape_source=source, input_shape=shape)
        finish(sessions, held, "succeeded")
    facts = load(sessions, model_id).facts
    assert facts is not None
    assert facts["input_shape_source"] == kept
    assert facts["input_shape"] == ([2] if kept == found != known else [1])


def test_blocks_that_were_unknown_become_known_by_a_job(sessions: Sessions, project_id: str, model_id: str):
    inspect(sessions, model_id)
    held = claim(sessions)
    assert record(sessions, held, blocks=[], input_shape=None, input_shape_source=None, blocks_unknown={"code": "x"})
    finish(sessions, held, "succeeded")
    unknown = load(sessions, model_id)
    assert (unknown.state, unknown.facts and unknown.facts["num_blocks"]) == ("ready", None)
    submit(sessions, project_id, model_id)
    held = claim(sessions)
    assert record(sessions, held, input_shape_source="data", blocks_unknown=None)
    known = load(sessions, model_id)
    assert known.facts is not None
    assert (known.facts["num_blocks"], known.facts["blocks_unknown"]) == (1, None)


def test_a_rejected_model_becomes_ready_when_a_job_that_waited_finds_it_sound(
    sessions: Sessions, project_id: str, model_id: str
):
    inspect(sessions, model_id)
    submit(sessions, project_id, model_id)
    held = claim(sessions)
    with sessions.begin() as session:
        finish_job(session, held, status="failed", error={"code": "worker.engine_killed"}, cause="failed")
    with sessions.begin() as session:  # a job is still to look at it
        assert settle_model(session, model_id) is None
    held = claim(sessions)
    assert record(sessions, held)
    model = load(sessions, model_id)
    assert (model.state, model.error) == ("ready", None)


def test_a_cancelled_inspection_rejects_the_model_instead_of_beginning_again(sessions: Sessions, model_id: str):
    job_id = inspect(sessions, model_id)
    with sessions.begin() as session:
        request_cancel(session, session.get_one(Job, job_id), keep_best=False)
    with sessions.begin() as session:
        assert settle_forgotten_models(session) == [model_id]
    model = load(sessions, model_id)
    assert model.error is not None
    assert (model.state, model.error["code"]) == ("rejected", "model.inspection_cancelled")
    with sessions.begin() as session:
        assert settle_forgotten_models(session) == []


def test_eight_workers_settle_a_model_once(sessions: Sessions, model_id: str):
    def settle() -> None:
        with sessions.begin() as session:
            settle_forgotten_models(session)

    threads = [threading.Thread(target=settle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions() as session:
        assert len(session.scalars(select(Job.id)).all()) == 1


def test_deleting_stops_the_inspection_and_hides_the_model(sessions: Sessions, model_id: str):
    job_id = inspect(sessions, model_id)
    with sessions.begin() as session:
        delete_model(session, session.get_one(Model, model_id))
    assert load(sessions, model_id).deleted_at is not None
    with sessions.begin() as session:
        assert session.get_one(Job, job_id).status == "cancelled"
        assert settle_forgotten_models(session) == []


@pytest.mark.parametrize("status", ["queued", "running", "cancelling"])
def test_a_model_is_not_deleted_under_a_job(sessions: Sessions, project_id: str, model_id: str, status: str):
    job_id = submit(sessions, project_id, model_id)
    if status != "queued":
        claim(sessions)
    if status == "cancelling":
        with sessions.begin() as session:
            request_cancel(session, session.get_one(Job, job_id), keep_best=False)
    with sessions() as session, pytest.raises(ModelInUse, match=job_id):
        delete_model(session, session.get_one(Model, model_id))
