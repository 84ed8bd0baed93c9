"""Bringing webhooks out: a thread of the worker's main process that takes what is due and posts it."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.shared.egress import EgressError, EgressPolicy
from app.shared.fetch import Answer, post
from app.shared.webhooks import Attempt, Delivery, record_attempt, signed_headers, take_due

LOOK_SECONDS = 1.0
# Slow receivers must not hold up the others; a batch is never larger, so that all of it is under way at once.
PARALLEL = 16
ANSWER_SECONDS = 15.0
# Longer than anybody should be waited for, and a receiver must not keep a row for ever.
LONGEST_RETRY_AFTER_SECONDS = 24 * 3600.0
ASKS_FOR_PATIENCE = (429, 503)


@dataclass(frozen=True)
class Postbox:
    """What delivering needs to know."""

    sessions: sessionmaker[Session]
    service_secret: bytes
    policy: EgressPolicy
    retry_seconds: Sequence[float]
    answer_seconds: float = ANSWER_SECONDS


def deliver_until(stopped: threading.Event, postbox: Postbox) -> None:
    """Deliver until stopped. An outage of the database is logged once, and delivering goes on after it."""
    healthy = True
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="webhooks") as pool:
        while not stopped.wait(LOOK_SECONDS):
            try:
                while deliver_due(postbox, pool) and not stopped.is_set():
                    continue
            except Exception as error:  # noqa: BLE001  the border of the thread: without it, nobody hears anything more
                if healthy:
                    structlog.get_logger().warning("webhooks not delivered", error=f"{type(error).__name__}: {error}")
                healthy = False
            else:
                healthy = True


def deliver_due(postbox: Postbox, pool: ThreadPoolExecutor) -> int:
    """One round: take what is due, post all of it at once, note what happened. Returns how many there were."""
    with postbox.sessions.begin() as session:
        due = take_due(session, postbox.service_secret, limit=PARALLEL)
    for delivery, attempt in zip(due, pool.map(partial(_attempt, postbox), due), strict=True):
        with postbox.sessions.begin() as session:
            record_attempt(session, delivery.id, attempt, retry_seconds=postbox.retry_seconds)
        structlog.get_logger().info("webhook", delivery_id=delivery.id, status=attempt.status, error=attempt.error)
    return len(due)


def _attempt(postbox: Postbox, delivery: Delivery) -> Attempt:
    try:
        answer = post(delivery.url, delivery.body, signed_headers(delivery), policy=postbox.policy,
                      seconds=postbox.answer_seconds)  # fmt: skip
    except EgressError as error:
        return Attempt(None, f"{error.code}: {error}", "", 0.0)
    # Some databases take no NUL in a text.
    return Attempt(answer.status, None, answer.excerpt.replace("\0", ""), answer.seconds, _retry_after(answer))


def _retry_after(answer: Answer) -> float | None:
    asked = answer.headers.get("retry-after", "")
    if answer.status not in ASKS_FOR_PATIENCE or not asked.isdecimal():
        return None
    return min(float(asked), LONGEST_RETRY_AFTER_SECONDS)
