"""Calls to URLs that customers name, through `app.shared.egress`: a POST, and a download to a file."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import httpcore

from app.shared.egress import EgressError, EgressPolicy, Resolve, Target, check_url, pinned_pool, resolve

CONNECT_SECONDS, SILENCE_SECONDS = 5.0, 30.0
DOWNLOAD_SCHEMES = ("https",)
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
USER_AGENT = "ArchRepair"
EXCERPT_BYTES = 500


@dataclass(frozen=True)
class Answer:
    """What a server said: status, headers by lower-case name, and the first bytes of the body."""

    status: int
    headers: Mapping[str, str]
    excerpt: str
    seconds: float


@dataclass(frozen=True)
class Fetched:
    """A file that arrived whole."""

    size_bytes: int
    sha256: str


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    policy: EgressPolicy,
    seconds: float,
    lookup: Resolve | None = None,
) -> Answer:
    """POST once and read no more than the beginning of the answer; a redirect is an answer. Raises EgressError."""
    started = time.monotonic()
    target = check_url(url, policy, schemes=("https", "http"))
    with _exchange("POST", target, headers, policy=policy, seconds=seconds, body=body, lookup=lookup) as response:
        excerpt = _first_bytes(response, EXCERPT_BYTES).decode("utf-8", "replace")
        return Answer(response.status, _headers(response), excerpt, time.monotonic() - started)


def fetch_to_file(
    url: str,
    path: Path,
    *,
    policy: EgressPolicy,
    max_bytes: int,
    seconds: float,
    sha256: str | None = None,
    lookup: Resolve | None = None,
) -> Fetched:
    """GET a file. Redirects stay on the host and are few; what is too long or not `sha256` leaves no file.

    Raises EgressError.
    """
    deadline, target = time.monotonic() + seconds, check_url(url, policy, schemes=DOWNLOAD_SCHEMES)
    for _ in range(MAX_REDIRECTS + 1):
        left = deadline - time.monotonic()
        with _exchange("GET", target, {}, policy=policy, seconds=left, lookup=lookup) as response:
            if response.status in REDIRECTS:
                target = _redirected(target, _headers(response).get("location", ""), policy)
                continue
            if response.status != 200:
                raise EgressError("http_status", f"{target.host} answered with status {response.status}.")
            return _save(response, path, max_bytes=max_bytes, sha256=sha256)
    raise EgressError("too_many_redirects", f"{target.host} redirects more than {MAX_REDIRECTS} times.")


def _redirected(target: Target, location: str, policy: EgressPolicy) -> Target:
    try:
        new = check_url(urljoin(target.url, location), policy, schemes=(target.scheme,))
    except ValueError:  # of urljoin
        raise EgressError("redirect_refused", f"{target.host} redirects to what is no URL.") from None
    if (new.host, new.port) != (target.host, target.port):
        hint = "Give the URL that it leads to."
        raise EgressError("redirect_refused", f"{target.host} redirects to another host.", hint=hint)
    return new


@contextmanager
def _exchange(
    method: str,
    target: Target,
    headers: Mapping[str, str],
    *,
    policy: EgressPolicy,
    seconds: float,
    body: bytes = b"",
    lookup: Resolve | None = None,
) -> Iterator[httpcore.Response]:
    """One request and its answer, unread. No proxy, no cookie, no second address."""
    address = resolve(target, policy, lookup)
    sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close", **headers}
    # httpcore sends no Host and no length of its own.
    sent["Host"] = target.url.split("/")[2].removesuffix(":443" if target.scheme == "https" else ":80")
    if method == "POST":
        sent["Content-Length"] = str(len(body))
    timeouts = {"connect": CONNECT_SECONDS, "read": SILENCE_SECONDS, "write": SILENCE_SECONDS, "pool": CONNECT_SECONDS}
    try:
        with (
            pinned_pool(address, seconds=seconds) as pool,
            pool.stream(
                method, target.url, headers=list(sent.items()), content=body, extensions={"timeout": timeouts}
            ) as response,
        ):
            yield response
    except httpcore.TimeoutException:
        raise EgressError("timed_out", f"{target.host} did not answer in time.") from None
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise EgressError("unreachable", f"{target.host} could not be called: {_in_words(error)}.") from None


def _in_words(error: Exception) -> str:
    """Without addresses, which errors of the system name."""
    if isinstance(error, httpcore.ConnectError) and "certificate" in str(error).lower():
        return "its certificate is not valid"
    return {"ConnectError": "no connection", "ReadError": "the connection broke", "WriteError": "the connection broke",
            "RemoteProtocolError": "it does not speak HTTP"}.get(type(error).__name__, "no connection")  # fmt: skip


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def _first_bytes(response: httpcore.Response, count: int) -> bytes:
    """As many as come: the status is the answer, and a body that breaks off takes nothing from it."""
    first = b""
    with suppress(httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        for chunk in response.iter_stream():
            first += chunk
            if len(first) >= count:
                break
    return first[:count]


def _save(response: httpcore.Response, path: Path, *, max_bytes: int, sha256: str | None) -> Fetched:
    digest, size = hashlib.sha256(), 0
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            for chunk in response.iter_stream():
                size += len(chunk)
                if size > max_bytes:
                    raise EgressError("too_large", f"The file has more than the {max_bytes:,} bytes that are fetched.")
                digest.update(chunk)
                file.write(chunk)
        if sha256 is not None and digest.hexdigest() != sha256:
            detail = f"The file has the sha256 {digest.hexdigest()}, not {sha256} as asked."
            raise EgressError("digest_mismatch", detail, hint="It has changed since, or another was meant.")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Fetched(size, digest.hexdigest())
