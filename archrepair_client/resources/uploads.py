"""Large files, in parts: what has arrived once is not sent again, by this process or a later one.

Where the service signs URLs of its object store, parts go there directly; one that does not arrive there goes through
the service.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from archrepair_client.errors import APIError, InvalidRequest, PermissionDenied
from archrepair_client.resources.resource import D, Resource
from archrepair_client.retries import answered
from archrepair_client.steps import Call, FileSlice, Request, Send, Steps, Together, operation
from archrepair_client.transfers import (
    Digests,
    Meter,
    OnTransfer,
    digests_of,
    existing_file,
    part_bytes_for,
    sha256_of,
    slices_of,
)
from archrepair_client.types import Upload

PARALLEL_PARTS = 4
COMPLETE_WAIT_SECONDS = 20
# A part that arrives with other bytes than it was sent with is sent again so often.
DAMAGED_PART_TRIES = 3
ENDED = ("failed", "expired")
# Signed URLs are good for an hour, and a part has to be through by then.
FRESH_SECONDS = 1800.0
# A service on local files signs none; a key that may not look at uploads is told none.
NONE_SIGNED = ("upload.no_signed_urls", "auth.missing_scope")
log = logging.getLogger("archrepair_client")


@dataclass
class SignedParts:
    """The store's URLs for parts of one upload, by number; none where all go through the service."""

    urls: dict[int, str] = field(default_factory=dict)
    asked_at: float = 0.0
    # What lies in the store by such a URL: completing the upload names it.
    sha256_of: dict[int, str] = field(default_factory=dict)

    def told(self) -> list[dict[str, object]]:
        """As `complete` takes them."""
        return [{"number": number, "sha256": digest} for number, digest in sorted(self.sha256_of.items())]


class Uploads(Resource[D]):
    """`client.uploads`."""

    @operation
    def send(
        self, path: str | Path, *, on_transfer: OnTransfer | None = None, parallel: int = PARALLEL_PARTS
    ) -> Steps[Upload]:
        """Send a file, several parts at once. The same file again goes on where it broke off, or is there already.

        Raises BadInput, APIError, NoConnection.
        """
        path = existing_file(Path(path))
        sha256: str = yield Call(partial(sha256_of, path))
        upload = yield from self._begun(path, sha256)
        if not upload.done:
            signed = yield from self._send_missing(upload, path, on_transfer, parallel)
            upload = yield from self._completed(upload.id, signed)
        return upload

    @operation
    def retrieve(self, upload_id: str) -> Steps[Upload]:
        """One upload, with the parts that have arrived."""
        return Upload.model_validate_json((yield from self._get(f"/uploads/{upload_id}")).content)

    @operation
    def complete(self, upload_id: str) -> Steps[Upload]:
        """Have the parts made one file, and wait for it. Raises InvalidRequest when its sha256 is another."""
        return (yield from self._completed(upload_id, SignedParts()))

    @operation
    def delete(self, upload_id: str) -> Steps[None]:
        """Delete an upload. What was made of it keeps its bytes."""
        yield from self._delete(f"/uploads/{upload_id}")

    def _begun(self, path: Path, sha256: str) -> Steps[Upload]:
        """The upload of this content that is open or completed, or a new one.

        The key is made of the content: beginning the same again is answered with the upload there is.
        """
        size_bytes = path.stat().st_size
        name = hashlib.sha256(path.name.encode()).hexdigest()[:16]
        key, part_bytes = f"upload-{sha256}-{name}", part_bytes_for(size_bytes)
        asked = {"filename": path.name, "size_bytes": size_bytes, "sha256": sha256, "part_bytes": part_bytes}
        try:
            response = yield from self._post_content("/uploads", asked, key=f"{key}-{part_bytes}")
        except InvalidRequest as error:
            if error.code != "upload.part_too_large":
                raise
            del asked["part_bytes"]  # the service takes smaller ones only: its own choice then
            response = yield from self._post_content("/uploads", asked, key=key)
        if "idempotent-replayed" not in response.headers:
            return Upload.model_validate_json(response.content)
        upload = yield from Uploads.retrieve.steps(self, response.json()["id"])
        if upload.state in ENDED:
            upload = Upload.model_validate_json((yield from self._post("/uploads", asked)).content)
        return upload

    def _completed(self, upload_id: str, signed: SignedParts) -> Steps[Upload]:
        query, told = {"wait": COMPLETE_WAIT_SECONDS}, {"parts": signed.told()}
        request = Request("POST", f"/uploads/{upload_id}/complete", query, json=told)
        while True:
            response = yield from answered(request, self.options.patient())
            upload = Upload.model_validate_json(response.content)
            if response.status_code != 202:
                return upload

    def _send_missing(
        self, upload: Upload, path: Path, on_transfer: OnTransfer | None, parallel: int
    ) -> Steps[SignedParts]:
        parts = dict(enumerate(slices_of(upload.size_bytes, upload.part_bytes, path), 1))
        signed = SignedParts()
        if len(parts) > 1:
            upload = yield from self._with_urls(upload, signed)
        arrived = {part.number: part for part in upload.parts}
        for part in arrived.values():
            if part.sha256 is None:  # it went to the store, by an earlier process: this one has to vouch for it
                digests: Digests = yield Call(partial(digests_of, parts[part.number]))
                signed.sha256_of[part.number] = digests.sha256.hex()
        meter = Meter(path.name, upload.size_bytes, on_transfer)
        meter.set(sum(part.size_bytes for part in arrived.values()))
        sending: Sequence[Steps[None]] = [
            self._send_part(upload, number, part=part, signed=signed, meter=meter)
            for number, part in parts.items()
            if number not in arrived
        ]
        yield Together(sending, parallel)
        return signed

    def _with_urls(self, upload: Upload, signed: SignedParts) -> Steps[Upload]:
        """The upload, with what of it lies in the store; `signed` gets the URLs for the rest, if there are such."""
        try:
            answer = yield from self._get(f"/uploads/{upload.id}", presign="true")
        except (InvalidRequest, PermissionDenied) as error:
            if error.code not in NONE_SIGNED:
                raise
            return upload
        upload = Upload.model_validate_json(answer.content)
        signed.urls = {part.number: part.url for part in upload.part_urls or []}
        signed.asked_at = time.monotonic()
        return upload

    def _send_part(
        self, upload: Upload, number: int, *, part: FileSlice, signed: SignedParts, meter: Meter
    ) -> Steps[None]:
        digests: Digests = yield Call(partial(digests_of, part))
        if (yield from self._sent_to_store(upload, number, part=part, digests=digests, signed=signed)):
            signed.sha256_of[number] = digests.sha256.hex()
        else:
            yield from self._sent_to_service(upload.id, number, part=part, digests=digests)
        meter.add(part.size_bytes)

    def _sent_to_store(
        self, upload: Upload, number: int, *, part: FileSlice, digests: Digests, signed: SignedParts
    ) -> Steps[bool]:
        """Whether the store took the part. It is asked once: the service takes what it does not."""
        if signed.urls and time.monotonic() - signed.asked_at > FRESH_SECONDS:
            yield from self._with_urls(upload, signed)
        url = signed.urls.get(number)
        if url is None:
            return False
        headers = {"Content-MD5": digests.content_md5}
        request = Request("PUT", url, headers=headers, body=part, timeout_seconds=self.options.timeout_seconds)
        try:
            response: httpx.Response = yield Send(request)
        except httpx.RequestError as error:
            why = type(error).__name__
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                signed.urls = {}  # its name may mean something to the service alone
        else:
            if response.is_success:
                return True
            why = f"HTTP {response.status_code}"
        log.info("part %d of %s: the store %s: %s; sent to the service", number, upload.id, httpx.URL(url).host, why)
        return False

    def _sent_to_service(self, upload_id: str, number: int, *, part: FileSlice, digests: Digests) -> Steps[None]:
        headers = {"Content-Digest": digests.content_digest, "Content-Type": "application/octet-stream"}
        request = Request("PUT", f"/uploads/{upload_id}/parts/{number}", headers=headers, body=part)
        for tries_left in reversed(range(DAMAGED_PART_TRIES)):
            try:
                yield from answered(request, self.options)
            except APIError as error:
                if error.code != "upload.digest_mismatch" or not tries_left:
                    raise
            else:
                return
