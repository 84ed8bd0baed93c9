"""Bringing webhooks out: a thread of the worker's main process that takes what is due and has it posted."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.shared.egress import EgressError, EgressPolicy
from app.shared.fetch import Answer, post
from app.shared.metrics import DELIVERED, REFUSED, UNREACHABLE, WEBHOOK_ATTEMPTS
from app.shared.webhooks import Attempt, Delivery, record_attempt, signed_headers, take_due

LOOK_SECONDS = 1.0
PARALLEL = 16
# A project with so many under way gets no further ones, and gets so many at once: its receivers may be slow.
PER_PROJECT = 4
ANSWER_SECONDS = 15.0
# Longer than anybody should be waited for, and a receiver must not keep a row for ever.
LONGEST_RETRY_AFTER_SECONDS = 24 * 3600.0
ASKS_FOR_PATIENCE = (429, 503)


@dataclass(frozen=True)
class Postbox:
    """What delivering needs to know."""

    sessions: sessionmaker[Session]
    service_secret: bytes = field(repr=False)
    policy: EgressPolicy
    retry_seconds: Sequence[float]
    answer_seconds: float = ANSWER_SECONDS


UnderWay = dict[Future[None], Delivery]


def deliver_until(stopped: threading.Event, postbox: Postbox) -> None:
    """Deliver until stopped. An outage of the database is logged once, and delivering goes on after it."""
    healthy, under_way = True, UnderWay()
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="webhooks") as pool:
        while not stopped.is_set():
            started = 0
            try:
                settle(under_way)
                started = start_due(postbox, pool, under_way)
            except Exception as error:  # noqa: BLE001  the border of the thread: without it, nobody hears anything more
                if healthy:
                    structlog.get_logger().warning("webhooks not delivered", error=f"{type(error).__name__}: {error}")
                healthy = False
            else:
                healthy = True
            if len(under_way) >= PARALLEL:
                wait(under_way, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
            elif not started:
                stopped.wait(LOOK_SECONDS)


def start_due(postbox: Postbox, pool: ThreadPoolExecutor, under_way: UnderWay) -> int:
    """Take what is due, as much as there are hands free, and start on it. Returns how many there were."""
    hands = PARALLEL - len(under_way)
    if hands == 0:
        return 0
    of_projects = Counter(delivery.project_id for delivery in under_way.values())
    busy = [project_id for project_id, count in of_projects.items() if count >= PER_PROJECT]
    with postbox.sessions.begin() as session:
        due = take_due(session, postbox.service_secret, limit=hands, per_project=PER_PROJECT, busy=busy)
    for delivery in due:
        under_way[pool.submit(_bring_out, postbox, delivery)] = delivery
    return len(due)


def settle(under_way: UnderWay) -> None:
    """Forget those that are through. Raises what kept one from being noted: it will be taken again by itself."""
    for future in [future for future in under_way if future.done()]:
        del under_way[future]
        future.result()


def _bring_out(postbox: Postbox, delivery: Delivery) -> None:
    attempt = _attempt(postbox, delivery)
    with postbox.sessions.begin() as session:
        record_attempt(session, delivery, attempt, retry_seconds=postbox.retry_seconds)
    WEBHOOK_ATTEMPTS.labels(_result(attempt)).inc()
    structlog.get_logger().info("webhook", delivery_id=delivery.id, status=attempt.status, error=attempt.error)


def _result(attempt: Attempt) -> str:
    if attempt.succeeded:
        return DELIVERED
    return UNREACHABLE if attempt.status is None else REFUSED


def _attempt(postbox: Postbox, delivery: Delivery) -> Attempt:
    try:
        answer = post(delivery.url, delivery.body, signed_headers(delivery), policy=postbox.policy,
                      seconds=postbox.answer_seconds)  # fmt: skip
    except EgressError as error:
        return Attempt(None, f"{error.code}: {error}", "", 0.0)
    except Exception:  # noqa: BLE001  the border of one message: else it would be taken again for ever
        structlog.get_logger().exception("a webhook could not be sent", delivery_id=delivery.id)
        return Attempt(None, "internal: the message could not be sent.", "", 0.0)
    # Some databases take no NUL in a text.
    return Attempt(answer.status, None, answer.excerpt.replace("\0", ""), answer.seconds, _retry_after(answer))


def _retry_after(answer: Answer) -> float | None:
    """Seconds, given as such or as a date."""
    asked = answer.headers.get("retry-after", "")
    if answer.status not in ASKS_FOR_PATIENCE or not asked:
        return None
    if asked.isdecimal():
        return min(float(asked), LONGEST_RETRY_AFTER_SECONDS)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    seconds = (until if until.tzinfo else until.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(seconds.total_seconds(), 0.0), LONGEST_RETRY_AFTER_SECONDS)
