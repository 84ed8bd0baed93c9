"""Jobs over HTTP: submit one with its files, follow it, download what it leaves."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

WAIT_SECONDS = 10
CHUNK_BYTES = 1 << 20

Job = dict[str, Any]


class ServiceError(Exception):
    """The service said no; the message is its problem document in words."""


def submit_job(client: httpx.Client, spec: Mapping[str, Any], *, model: Path, datasets: Mapping[str, Path]) -> Job:
    """POST /v1/jobs with the spec, the model, and one file per `upload:NAME` of the spec."""
    with ExitStack() as stack:
        parts: list[tuple[str, Any]] = [("spec", (None, json.dumps(spec), "application/json"))]
        for name, path in {"model": model, **datasets}.items():
            parts.append((name, (path.name, stack.enter_context(path.open("rb")), "application/octet-stream")))
        return dict(_checked(client.post("/v1/jobs", files=parts)).json())


def follow_job(client: httpx.Client, job_id: str, on_change: Callable[[Job], None]) -> Job:
    """Wait until the job is done, on the server; `on_change` sees every change. `done` decides, never the status."""
    etag, told = "", None
    while True:
        # The first look answers at once; the others wait on the server for a change.
        headers, wait = ({"If-None-Match": etag}, WAIT_SECONDS) if etag else ({}, 0)
        response = client.get(f"/v1/jobs/{job_id}", params={"wait": wait}, headers=headers)
        if response.status_code == httpx.codes.NOT_MODIFIED:
            continue
        job: Job = _checked(response).json()
        etag = response.headers.get("ETag", "")
        if (news := (job["status"], job["progress"])) != told:
            told = news
            on_change(job)
        if job["done"]:
            return job


def download(client: httpx.Client, path: str, target: Path) -> Path:
    """Stream a response body into a file; a half-finished download never carries the final name."""
    unfinished = target.with_name(f".{target.name}.part")
    with client.stream("GET", path) as response, unfinished.open("wb") as file:
        if response.is_error:
            response.read()
        _checked(response)
        for chunk in response.iter_bytes(CHUNK_BYTES):
            file.write(chunk)
    return unfinished.replace(target)


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        problem = response.json()
        raise ServiceError(f"{problem['code']}: {problem['detail']} {problem.get('hint') or ''}".strip())
    except (ValueError, KeyError) as error:
        raise ServiceError(f"HTTP {response.status_code}: {response.text[:500]}") from error
