"""Large files, in parts: what has arrived once is not sent again, by this process or a later one."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from archrepair_client.errors import APIError, InvalidRequest
from archrepair_client.resources.resource import D, Resource
from archrepair_client.retries import answered
from archrepair_client.steps import Call, FileSlice, Request, Steps, Together, operation
from archrepair_client.transfers import (
    Meter,
    OnTransfer,
    content_digest,
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
            yield from self._send_missing(upload, path, on_transfer, parallel)
            upload = yield from Uploads.complete.steps(self, upload.id)
        return upload

    @operation
    def retrieve(self, upload_id: str) -> Steps[Upload]:
        """One upload, with the parts that have arrived."""
        return Upload.model_validate_json((yield from self._get(f"/uploads/{upload_id}")).content)

    @operation
    def complete(self, upload_id: str) -> Steps[Upload]:
        """Have the parts made one file, and wait for it. Raises InvalidRequest when its sha256 is another."""
        request = Request("POST", f"/uploads/{upload_id}/complete", {"wait": COMPLETE_WAIT_SECONDS})
        while True:
            response = yield from answered(request, self.options.patient())
            upload = Upload.model_validate_json(response.content)
            if response.status_code != 202:
                return upload

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

    def _send_missing(self, upload: Upload, path: Path, on_transfer: OnTransfer | None, parallel: int) -> Steps[None]:
        arrived = {part.number: part.size_bytes for part in upload.parts}
        meter = Meter(path.name, upload.size_bytes, on_transfer)
        meter.set(sum(arrived.values()))
        parts = slices_of(upload.size_bytes, upload.part_bytes, path)
        missing = [(number, part) for number, part in enumerate(parts, 1) if number not in arrived]
        sending: Sequence[Steps[None]] = [self._send_part(upload.id, number, part, meter) for number, part in missing]
        yield Together(sending, parallel)

    def _send_part(self, upload_id: str, number: int, part: FileSlice, meter: Meter) -> Steps[None]:
        digest = yield Call(partial(content_digest, part))
        headers = {"Content-Digest": digest, "Content-Type": "application/octet-stream"}
        request = Request("PUT", f"/uploads/{upload_id}/parts/{number}", headers=headers, body=part)
        for tries_left in reversed(range(DAMAGED_PART_TRIES)):
            try:
                yield from answered(request, self.options)
            except APIError as error:
                if error.code != "upload.digest_mismatch" or not tries_left:
                    raise
            else:
                meter.add(part.size_bytes)
                return
