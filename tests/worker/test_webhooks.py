"""Webhooks from the change of a job to a receiver that checks the signature, over real HTTP."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from app.shared.claims import claim_job
from app.shared.db import db_now
from app.shared.egress import EgressPolicy
from app.shared.ids import new_id
from app.shared.jobs import finish_job, request_cancel
from app.shared.tables import Job, Project, WebhookDelivery, WebhookEndpoint
from app.shared.webhooks import (
    EVENTS,
    GIVE_UP_SECONDS,
    MAX_ATTEMPTS_SHOWN,
    TAKEN_SECONDS,
    Attempt,
    close_endpoint,
    forget_old_deliveries,
    record_attempt,
    redeliver,
    rotate_secret_of_single_jobs,
    secret_of_single_jobs,
    signing_secret,
    take_due,
)
from worker.webhooks import PARALLEL, PER_PROJECT, Postbox, deliver_until, settle, start_due

SECRET = b"of the service"
RETRIES = (0.0, 0.0)


@pytest.fixture
def postbox(service):
    return Postbox(service.bench.sessions, SECRET, EgressPolicy(("127.0.0.0/8",)), RETRIES, answer_seconds=2)


@pytest.fixture
def deliver(postbox):
    """Rounds until nothing is due; returns how many messages went out."""

    def rounds(postbox=postbox):
        sent, under_way = 0, {}
        with ThreadPoolExecutor(PARALLEL) as pool:
            while count := start_due(postbox, pool, under_way):
                sent += count
                wait(under_way)
                settle(under_way)
        return sent

    return rounds


@pytest.fixture
def endpoint(service, receiver):
    row = WebhookEndpoint(id=new_id("whk"), project_id=service.project_id, url=receiver.url, events=list(EVENTS))
    with service.bench.sessions.begin() as session:
        session.add(row)
    return row.id


def deliveries(service):
    with service.bench.sessions() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


def run_job(service, status="succeeded", **submitted):
    job_id = service.submit("succeed", **submitted)
    with service.bench.sessions.begin() as session:
        claim = claim_job(session, owner="w", lease_seconds=60)
    with service.bench.sessions.begin() as session:
        assert finish_job(session, claim, status=status, verdict="pass", cause=status)
    return job_id


def verified(receiver, place, secret):
    headers, body = receiver.got[place]
    return Webhook(secret).verify(body, headers)


def test_every_change_of_a_job_arrives_in_order_and_signed(service, endpoint, receiver, deliver):
    job_id = run_job(service)
    assert deliver() == 3
    secret = signing_secret(SECRET, endpoint)
    told = sorted((verified(receiver, place, secret) for place in range(3)), key=lambda said: said["timestamp"])
    assert {said["type"] for said in told} == {"job.created", "job.started", "job.succeeded"}
    last = next(said for said in told if said["type"] == "job.succeeded")
    assert (last["data"]["id"], last["data"]["status"], last["data"]["verdict"]) == (job_id, "succeeded", "pass")
    assert last["data"]["links"] == {"self": f"/v1/jobs/{job_id}"}
    with pytest.raises(WebhookVerificationError):
        verified(receiver, 0, signing_secret(SECRET, "another"))
    assert [row.state for row in deliveries(service)] == ["delivered"] * 3
    assert deliveries(service)[0].attempts[0]["answer"] == "thanks"


def test_a_change_that_is_rolled_back_is_not_told(service, endpoint):
    job_id = service.submit("succeed")
    with service.bench.sessions() as session:
        request_cancel(session, session.get_one(Job, job_id), keep_best=False)
        session.rollback()
    assert [row.event for row in deliveries(service)] == ["job.created"]


def test_only_what_was_asked_for_is_sent_and_other_projects_hear_nothing(service, endpoint, receiver, deliver):
    with service.bench.sessions.begin() as session:
        session.get_one(WebhookEndpoint, endpoint).events = ["job.failed"]
    run_job(service)
    run_job(service, status="failed")
    assert deliver() == 1
    assert verified(receiver, 0, signing_secret(SECRET, endpoint))["type"] == "job.failed"


def test_a_job_may_bring_its_own_webhook(service, receiver, deliver):
    run_job(service, webhook={"url": receiver.url, "events": ["job.succeeded"]})
    assert deliver() == 1
    said = verified(receiver, 0, signing_secret(SECRET, service.project_id))
    assert said["type"] == "job.succeeded"


def test_a_receiver_that_fails_is_tried_again_with_the_same_id(service, endpoint, receiver, deliver):
    receiver.status = 500
    service.submit("succeed")
    assert deliver() == 3
    (row,) = deliveries(service)
    assert (row.state, [entry["status"] for entry in row.attempts]) == ("failed", [500, 500, 500])
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {row.id}
    receiver.status = 204
    with service.bench.sessions.begin() as session:
        redeliver(session, session.get_one(WebhookDelivery, row.id), url=receiver.url)
    assert deliver() == 1
    (row,) = deliveries(service)
    assert (row.state, row.attempts[3]["asked_again"], row.attempts[-1]["status"]) == ("delivered", True, 204)


def test_nobody_there_is_a_failed_attempt_in_words(service, endpoint, receiver, deliver, postbox):
    with service.bench.sessions.begin() as session:
        session.get_one(WebhookEndpoint, endpoint).url = "http://127.0.0.1:9/"
    service.submit("succeed")
    deliver(replace(postbox, retry_seconds=()))
    assert deliveries(service)[0].attempts[0]["error"].startswith("unreachable: 127.0.0.1 could not be called")


def test_an_address_inside_is_not_called(service, endpoint, receiver, deliver, postbox):
    service.submit("succeed")
    deliver(replace(postbox, policy=EgressPolicy(), retry_seconds=()))
    (row,) = deliveries(service)
    assert row.attempts[0]["error"].startswith("url_refused")
    assert receiver.got == []


@pytest.mark.parametrize(("status", "headers"), [(302, {"Location": "http://127.0.0.1:9/"}), (400, {})])
def test_anything_but_success_counts_as_a_failure_and_no_redirect_is_followed(
    service, endpoint, receiver, deliver, postbox, status, headers
):
    receiver.status, receiver.headers = status, headers
    service.submit("succeed")
    assert deliver(replace(postbox, retry_seconds=())) == 1
    assert deliveries(service)[0].attempts[0]["status"] == status


@pytest.mark.parametrize("asked", ["120", "date", "soon", "\xb2"])
def test_patience_that_is_asked_for_is_given(service, endpoint, receiver, deliver, postbox, asked):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    receiver.status, receiver.headers = 503, {"Retry-After": date if asked == "date" else asked}
    service.submit("succeed")
    understood = asked in ("120", "date")
    assert deliver(replace(postbox, retry_seconds=(60.0,))) == 1
    (row,) = deliveries(service)
    assert row.next_attempt_at - row.attempts[0]["at"] == pytest.approx(120 if understood else 60, abs=7)


def test_a_slow_receiver_and_a_huge_answer_hold_nobody_up(service, endpoint, receiver, deliver, postbox):
    receiver.body, receiver.pause_seconds = b"x" * 5_000_000, 0.5
    service.submit("succeed")
    started = time.monotonic()
    deliver(replace(postbox, answer_seconds=0.2, retry_seconds=()))
    assert time.monotonic() - started < 2
    assert deliveries(service)[0].attempts[0]["error"].startswith("timed_out")
    receiver.pause_seconds = 0
    service.submit("succeed")
    deliver()
    assert len(deliveries(service)[1].attempts[0]["answer"]) == 500


def test_an_endpoint_that_says_gone_is_disabled(service, endpoint, receiver, deliver):
    receiver.status = 410
    service.submit("succeed")
    assert deliver() == 1
    service.submit("succeed")
    assert deliver() == 0
    with service.bench.sessions() as session:
        assert session.get_one(WebhookEndpoint, endpoint).enabled is False


def test_an_endpoint_that_takes_nothing_for_days_is_disabled(service, endpoint, receiver, deliver, postbox):
    receiver.status = 500
    service.submit("succeed")
    deliver(replace(postbox, retry_seconds=()))
    with service.bench.sessions.begin() as session:
        assert session.get_one(WebhookEndpoint, endpoint).enabled
        session.execute(update(WebhookDelivery).values(created_at=db_now() - GIVE_UP_SECONDS - 1))
    service.submit("succeed")
    deliver(replace(postbox, retry_seconds=()))
    with service.bench.sessions() as session:
        assert not session.get_one(WebhookEndpoint, endpoint).enabled


def test_for_a_day_after_a_rotation_both_secrets_sign(service, endpoint, receiver, deliver):
    with service.bench.sessions.begin() as session:
        row = session.get_one(WebhookEndpoint, endpoint)
        row.secret_version, row.rotated_at = 2, session.scalars(select(db_now())).one()
    service.submit("succeed")
    deliver()
    for version in (1, 2):
        verified(receiver, 0, signing_secret(SECRET, endpoint, version))
    with service.bench.sessions.begin() as session:
        session.get_one(WebhookEndpoint, endpoint).rotated_at -= 25 * 3600
    service.submit("succeed")
    deliver()
    with pytest.raises(WebhookVerificationError):
        verified(receiver, 1, signing_secret(SECRET, endpoint, 1))


def test_the_secret_of_single_jobs_rotates_with_a_day_for_the_old_one(service, receiver, deliver):
    def secret():
        with service.bench.sessions() as session:
            return secret_of_single_jobs(session, SECRET, service.project_id)

    def rotate():
        with service.bench.sessions.begin() as session:
            rotate_secret_of_single_jobs(session, service.project_id)

    def tell():
        service.submit("succeed", webhook={"url": receiver.url, "events": ["job.created"]})
        assert deliver() == 1
        return len(receiver.got) - 1

    first = secret()
    assert first == signing_secret(SECRET, service.project_id)
    verified(receiver, tell(), first)
    rotate()
    second = secret()
    both = tell()
    for either in (first, second):
        verified(receiver, both, either)
    rotate()
    assert len({first, second, secret()}) == 3
    with service.bench.sessions.begin() as session:
        session.execute(update(WebhookEndpoint).values(rotated_at=WebhookEndpoint.rotated_at - 25 * 3600))
    last = tell()
    verified(receiver, last, secret())
    for old in (first, second):
        with pytest.raises(WebhookVerificationError):
            verified(receiver, last, old)


def test_two_deliverers_do_not_take_the_same_and_a_dead_ones_is_taken_again(service, endpoint, receiver, deliver):
    for _ in range(6):
        service.submit("succeed")
    with service.bench.sessions.begin() as session:
        lost = take_due(session, SECRET, limit=4, per_project=4)  # this deliverer dies now
    assert deliver() == 2
    with service.bench.sessions.begin() as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=WebhookDelivery.next_attempt_at - TAKEN_SECONDS))
    assert deliver() == 4
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {row.id for row in deliveries(service)}
    assert {delivery.id for delivery in lost} < {row.id for row in deliveries(service)}


def test_what_was_taken_again_is_not_decided_by_who_had_it_first(service, endpoint, receiver, deliver):
    """A worker that was frozen, and wakes when another has delivered."""
    service.submit("succeed")
    with service.bench.sessions.begin() as session:
        (late,) = take_due(session, SECRET, limit=1, per_project=1)
        session.execute(update(WebhookDelivery).values(next_attempt_at=db_now()))
    assert deliver() == 1
    with service.bench.sessions.begin() as session:
        record_attempt(session, late, Attempt(500, None, "", 0.1), retry_seconds=RETRIES)
    (row,) = deliveries(service)
    assert (row.state, row.next_attempt_at, [entry["status"] for entry in row.attempts]) == (
        "delivered",
        None,
        [200, 500],
    )


def test_what_waits_for_an_endpoint_goes_to_where_it_is_now(service, endpoint, receiver, deliver, postbox):
    with service.bench.sessions.begin() as session:
        session.get_one(WebhookEndpoint, endpoint).url = "http://127.0.0.1:9/"
    service.submit("succeed")
    with service.bench.sessions.begin() as session:
        session.get_one(WebhookEndpoint, endpoint).url = receiver.url
    assert deliver() == 1
    assert deliveries(service)[0].url == receiver.url
    assert len(receiver.got) == 1


@pytest.mark.slow
def test_a_project_with_slow_receivers_holds_up_only_itself(service, endpoint, receiver, postbox, deliver):
    for _ in range(PARALLEL + 4):
        service.submit("succeed")
    with service.bench.sessions.begin() as session:
        session.add(Project(id="prj_other", name="other"))
        session.flush()
        session.add(WebhookDelivery(id="whd_other", project_id="prj_other", url=receiver.url, event="webhook.test",
                                    payload={}, next_attempt_at=db_now()))  # fmt: skip
    receiver.pause_seconds = 0.3
    under_way = {}
    with ThreadPoolExecutor(PARALLEL) as pool:
        assert start_due(postbox, pool, under_way) == PER_PROJECT + 1
        assert start_due(postbox, pool, under_way) == 0
        assert "whd_other" in {delivery.id for delivery in under_way.values()}
        wait(under_way)
        settle(under_way)
        assert under_way == {}
    receiver.pause_seconds = 0
    assert deliver() == PARALLEL + 4 - PER_PROJECT


def test_a_message_that_breaks_us_is_a_failed_attempt_and_holds_nobody_up(
    service, endpoint, receiver, deliver, monkeypatch
):
    def broken(delivery):
        raise IndexError(delivery.id)

    service.submit("succeed")
    with monkeypatch.context() as patched:
        patched.setattr("worker.webhooks.signed_headers", broken)
        assert deliver() == 3
    service.submit("succeed")
    assert deliver() == 1
    first, second = deliveries(service)
    assert (first.state, second.state) == ("failed", "delivered")
    assert first.attempts[0]["error"] == "internal: the message could not be sent."


def test_a_message_is_small_whatever_the_metadata(service, endpoint, receiver, deliver):
    service.submit("succeed", metadata={f"{number:02}" + "🛠" * 62: "🛠" * 512 for number in range(16)})
    service.submit("succeed", metadata={"branch": "größer"})
    deliver()
    assert all(len(body) < 20_000 for _, body in receiver.got)
    told = [verified(receiver, place, signing_secret(SECRET, endpoint))["data"]["metadata"] for place in (0, 1)]
    assert sorted(told, key=str) == [None, {"branch": "größer"}]


def test_who_asks_again_and_again_makes_no_row_grow(service, endpoint, receiver, deliver):
    service.submit("succeed")
    for _ in range(3):
        with service.bench.sessions.begin() as session:
            redeliver(session, session.scalars(select(WebhookDelivery)).one(), url=receiver.url)
    assert [entry.get("asked_again") for entry in deliveries(service)[0].attempts] == [True]
    with service.bench.sessions.begin() as session:
        session.execute(update(WebhookDelivery).values(attempts=[{"at": 0.0, "status": 500}] * MAX_ATTEMPTS_SHOWN))
    deliver()
    assert len(deliveries(service)[0].attempts) == MAX_ATTEMPTS_SHOWN
    assert deliveries(service)[0].attempts[-1]["status"] == 200


def test_secrets_do_not_stand_in_what_a_crash_prints(service, endpoint, postbox):
    service.submit("succeed")
    with service.bench.sessions.begin() as session:
        (taken,) = take_due(session, SECRET, limit=1, per_project=1)
    assert taken.secrets[0] not in repr(taken)
    assert SECRET.decode() not in repr(postbox)


def test_a_deleted_endpoint_gets_nothing_more(service, endpoint, receiver, deliver):
    service.submit("succeed")
    with service.bench.sessions.begin() as session:
        close_endpoint(session, session.get_one(WebhookEndpoint, endpoint))
    service.submit("succeed")
    assert deliver() == 0
    assert [row.state for row in deliveries(service)] == ["failed"]


def test_the_log_is_kept_for_thirty_days(service, endpoint, receiver, deliver):
    service.submit("succeed")
    deliver()
    with service.bench.sessions.begin() as session:
        forget_old_deliveries(session)
        assert len(session.scalars(select(WebhookDelivery)).all()) == 1
        session.execute(update(WebhookDelivery).values(created_at=db_now() - 31 * 24 * 3600))
        forget_old_deliveries(session)
        assert session.scalars(select(WebhookDelivery)).all() == []


def test_the_thread_delivers_and_goes_on_after_an_outage(service, endpoint, receiver, postbox, monkeypatch, eventually):
    monkeypatch.setattr("worker.webhooks.LOOK_SECONDS", 0.01)
    broken = replace(postbox, sessions=None)
    stopped = threading.Event()
    thread = threading.Thread(target=deliver_until, args=(stopped, broken))
    thread.start()
    time.sleep(0.05)
    object.__setattr__(broken, "sessions", postbox.sessions)
    service.submit("succeed")
    eventually(lambda: receiver.got)
    stopped.set()
    thread.join(5)
    assert not thread.is_alive()
