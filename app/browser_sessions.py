"""Signed-in browsers: an opaque token in a cookie, and in Redis which key it stands for.

The key itself is neither in the browser nor in Redis. What a session may do is looked up by its key with every request,
so that a revoked or expired key ends it. Sessions need not survive Redis: whoever loses one signs in again.
"""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from app.errors import ApiProblem

SESSION_SECONDS = 12 * 3600
TIMEOUT_SECONDS = 2.0


class BrowserSessions:
    """Sessions in the broker's Redis, for all gateways. Every call raises ApiProblem where Redis does not answer."""

    def __init__(self, broker_url: str) -> None:
        self._redis = Redis.from_url(
            broker_url,
            decode_responses=True,
            socket_connect_timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
        )

    def begin(self, key_id: str) -> str:
        """The token of a new session of that key: 256 random bits, of which only a digest is kept."""
        token = secrets.token_urlsafe(32)
        with _answering():
            self._redis.set(_name(token), key_id, ex=SESSION_SECONDS)
        return token

    def key_of(self, token: str) -> str | None:
        """The id of the key the session belongs to; None when there is no such session any more."""
        with _answering():
            return cast("str | None", self._redis.get(_name(token)))

    def end(self, token: str) -> None:
        """From now on the token opens nothing."""
        with _answering():
            self._redis.delete(_name(token))

    def close(self) -> None:
        """Let go of Redis."""
        self._redis.close()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        detail = "The broker, which keeps who is signed in, does not answer."
        raise ApiProblem("platform.sessions_unavailable", detail, hint="Try again in a moment.") from error


def _name(token: str) -> str:
    return f"archrepair:session:{hashlib.sha256(token.encode()).hexdigest()}"
