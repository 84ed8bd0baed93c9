"""How often a caller may ask: counted per minute in the broker's Redis, for all gateways together.

A gateway takes a hundredth of a limit at a time and counts that by itself: whoever comes close to a large limit would
otherwise pay for every request with a question to Redis. What a gateway has taken and not used by the end of the minute
nobody gets.
Without Redis nobody is refused: limits protect the service, and must not be what takes it down. While it is away no
request waits for it; a thread looks for it.
"""

import ipaddress
import math
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Self

import structlog
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import RedisStorage
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.errors import ApiProblem
from app.shared.metrics import RATE_LIMIT_OUTAGES

WINDOW_SECONDS = 60
# On one machine or in one rack it answers within a millisecond.
TIMEOUT_SECONDS = 0.25
LOOK_EVERY_SECONDS = 1.0
READS, WRITES, UPLOADS = "reads", "writes", "uploads"
# Of a limit, how much is taken from Redis at once; of a small one, a request.
BITES = 100
# One customer has as many addresses of IPv6 as there are in a network of this size.
IPV6_PREFIX = 64


@dataclass(frozen=True)
class Allowance:
    """What is left of a limit in this minute; below 0 the request is one too many."""

    name: str
    limit: int
    left: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """The fields of draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"{self.name}";q={self.limit};w={WINDOW_SECONDS}',
            "RateLimit": f'"{self.name}";r={max(self.left, 0)};t={self.reset_seconds}',
        }

    def require(self) -> None:
        """Raises ApiProblem `quota.rate_limited` for a request too many."""
        if self.left < 0:
            detail = f"The limit of {self.limit:,} {self.name} a minute is used up."
            hint = f"Try again in {self.reset_seconds} s; GET with ?wait= needs fewer requests than polling."
            headers = {"Retry-After": str(self.reset_seconds)}
            raise ApiProblem("quota.rate_limited", detail, hint=hint, headers=headers)


@dataclass(frozen=True)
class Count:
    """What is counted in one minute: `who` does something `name`d, which is allowed `limit` times."""

    name: str
    who: str
    limit: int
    minute: int

    @classmethod
    def now(cls, name: str, who: str, limit: int) -> Self:
        """The one that a request falls into that comes now."""
        return cls(name, who, limit, int(time.time() // WINDOW_SECONDS))

    @property
    def key(self) -> str:
        """Its name in Redis."""
        return RateLimitItemPerMinute(self.limit).key_for(self.name, self.who, str(self.minute))

    def allowance(self, number: int) -> Allowance:
        """What is left after the request of that number, from 1."""
        reset_seconds = math.ceil((self.minute + 1) * WINDOW_SECONDS - time.time())
        return Allowance(self.name, self.limit, self.limit - number, max(reset_seconds, 1))


class RateLimiter:
    """Counts in Redis. `outages` is how often it went away, `uncounted` how many requests passed meanwhile."""

    def __init__(self, broker_url: str) -> None:
        self.outages = 0
        self.uncounted = 0
        self._away = False
        self._closed = threading.Event()
        self._changing = threading.Lock()
        # The numbers that were taken from Redis and not used yet.
        self._in_hand: dict[Count, Iterator[int]] = {}
        self._storage = RedisStorage(
            broker_url,
            key_prefix="archrepair:limits",
            wrap_exceptions=True,
            socket_connect_timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # handed through to redis
        )

    def take_in_hand(self, name: str, who: str, limit: int) -> Allowance | None:
        """Count one request without asking Redis. None when it has to be asked, see `take`."""
        count = Count.now(name, who, limit)
        try:
            return count.allowance(next(self._in_hand[count]))
        except (KeyError, StopIteration):
            return None

    def take(self, name: str, who: str, limit: int) -> Allowance | None:
        """Count one request. None when nothing is limited: by the settings (0), or because Redis is away."""
        if limit == 0:
            return None
        if self._away:
            self.uncounted += 1
            return None
        count, bite = Count.now(name, who, limit), max(1, limit // BITES)
        try:
            last = self._storage.incr(count.key, 2 * WINDOW_SECONDS, bite)
        except StorageError as error:
            self._note_outage(error)
            return None
        first = last - bite + 1
        if bite > 1:
            self._keep(count, range(first + 1, last + 1))
        return count.allowance(first)

    def close(self) -> None:
        """Stop looking for Redis, and let go of it."""
        self._closed.set()
        self._storage.storage.close()

    def _keep(self, count: Count, numbers: Iterable[int]) -> None:
        with self._changing:
            over = [old for old in self._in_hand if old.minute < count.minute]
            for old in over:
                del self._in_hand[old]
            self._in_hand[count] = chain(self._in_hand.get(count, ()), numbers)

    def _note_outage(self, error: StorageError) -> None:
        with self._changing:
            self.uncounted += 1
            if self._away:
                return
            self._away = True
            self.outages += 1
            RATE_LIMIT_OUTAGES.inc()
        cause = type(error.storage_error).__name__
        structlog.get_logger().warning("rate limits are off: Redis does not answer", error=cause)
        threading.Thread(target=self._look_for_redis, name="rate-limits", daemon=True).start()

    def _look_for_redis(self) -> None:
        while not self._closed.wait(LOOK_EVERY_SECONDS):
            if self._storage.check():
                self._away = False
                structlog.get_logger().warning("rate limits are on again", uncounted=self.uncounted)
                return


def kind_of(method: str, content_type: str) -> str:
    """Which limit a request counts against."""
    if method in ("GET", "HEAD"):
        return READS
    return UPLOADS if method == "PUT" or content_type.startswith("multipart/") else WRITES


def client_network(host: str | None) -> str:
    """Whom failed authentications are counted for: an address of IPv4, a network of IPv6."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
