"""Jobs: submit, wait, follow, judge, cancel, run again, download."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from archrepair_client.events import EventStream
from archrepair_client.resources.models import Models
from archrepair_client.resources.resource import D, Resource, given
from archrepair_client.resources.uploads import Uploads
from archrepair_client.resources.waiting import waited
from archrepair_client.retries import opened
from archrepair_client.specs import Source, Submission, submission_of
from archrepair_client.steps import FilePart, Item, Listing, Read, Request, Sleep, Steps, listing, operation
from archrepair_client.transfers import OnTransfer, fetched
from archrepair_client.types import Artifact, Job, JobEvent, LogLine, Verdict

# What is larger goes in parts, which a broken connection does not send back to the beginning.
ONE_SHOT_BYTES = 8 * 1024 * 1024
RECONNECT_SECONDS = 1.0
LOG_POLL_SECONDS = 1.0
MOST_LOG_LINES = 10_000
OnChange = Callable[[Job], None]
OnEvent = Callable[[JobEvent], None]


class Jobs(Resource[D]):
    """`client.jobs`."""

    @operation
    def create(
        self,
        *,
        model: Source | None = None,
        datasets: Mapping[str, Source | None] | None = None,
        spec: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        on_transfer: OnTransfer | None = None,
        **fields: Any,
    ) -> Steps[Job]:
        """Submit a job. `model` is a path or `mdl_…`, each dataset a path or a reference; `fields` go into the spec.

        Raises BadInput before anything is sent; InvalidRequest says what is wrong in the spec.
        """
        submission = submission_of({**(spec or {}), **fields}, model=model, datasets=datasets)
        return (yield from Jobs.submit.steps(self, submission, key=idempotency_key, on_transfer=on_transfer))

    @operation
    def create_and_wait(
        self,
        *,
        on_event: OnEvent | None = None,
        on_change: OnChange | None = None,
        timeout_seconds: float | None = None,
        **asked: Any,
    ) -> Steps[Job]:
        """`create`, and `wait` for the end."""
        job = yield from Jobs.create.steps(self, **asked)
        waiting = Jobs.wait.steps(self, job.id, on_event=on_event, on_change=on_change, timeout_seconds=timeout_seconds)
        return (yield from waiting)

    @operation
    def submit(
        self, submission: Submission, *, key: str | None = None, on_transfer: OnTransfer | None = None
    ) -> Steps[Job]:
        """Submit what `create` makes of its arguments: large files first, in parts, then the job."""
        spec, small = dict(submission.spec), dict[str, Path]()
        for name, path in submission.all_files().items():
            if path.stat().st_size <= ONE_SHOT_BYTES:
                small[name] = path
            elif path is submission.model:
                registered = Models.create.steps(Models(self._client), path, on_transfer=on_transfer)
                spec["model_id"] = (yield from registered).id
            else:
                upload = yield from Uploads.send.steps(Uploads(self._client), path, on_transfer=on_transfer)
                spec = _replaced(spec, f"upload:{name}", upload.id)
        form = [_spec_part(spec), *(FilePart(name, path) for name, path in small.items())]
        response = yield from self._post("/jobs", form=form, key=key or str(uuid.uuid4()))
        return Job.model_validate_json(response.content)

    @operation
    def validate(self, spec: Mapping[str, Any]) -> Steps[Mapping[str, Any]]:
        """Check a spec without creating anything: the spec with its defaults. Raises InvalidRequest."""
        response = yield from self._post("/jobs", form=[_spec_part(spec)], query={"validate_only": "true"})
        return dict(response.json()["spec"])

    @operation
    def retrieve(self, job_id: str) -> Steps[Job]:
        """One job, as it is now."""
        return Job.model_validate_json((yield from self._get(f"/jobs/{job_id}")).content)

    @listing
    def list(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        verdict: str | None = None,
        model_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        limit: int | None = None,
    ) -> Listing[Job]:
        """The project's jobs, newest first; all of them unless there is a `limit`."""
        pairs = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        times = {"created_after": _rfc3339(created_after), "created_before": _rfc3339(created_before)}
        asked = given(status=status, kind=kind, verdict=verdict, model_id=model_id, **times)
        return self._pages("/jobs", Job, limit=limit, **asked, **pairs)

    @operation
    def wait(
        self,
        job_id: str,
        *,
        on_event: OnEvent | None = None,
        on_change: OnChange | None = None,
        timeout_seconds: float | None = None,
    ) -> Steps[Job]:
        """The job once it is done. Outages of the service are borne for minutes. Raises WaitTimedOut.

        `on_event` is told all that happened to the job, in order, `on_change` the job whenever it is another.
        """
        last_seq = 0

        def seen(job: Job) -> Steps[None]:
            nonlocal last_seq
            if on_event is not None:
                for event in (yield from self._events_after(job_id, last_seq)):
                    last_seq = event.seq
                    on_event(event)
            if on_change is not None:
                on_change(job)

        listens = on_event is not None or on_change is not None
        return (yield from waited(self.options, f"/jobs/{job_id}", Job, timeout_seconds, seen if listens else None))

    def _events_after(self, job_id: str, seq: int) -> Steps[Sequence[JobEvent]]:
        found: list[JobEvent] = []
        while True:
            page = (yield from self._get(f"/jobs/{job_id}/events", patient=True, after=seq, limit=1000)).json()
            found += [JobEvent.model_validate(item) for item in page["data"]]
            if not page.get("has_more"):
                return found
            seq = found[-1].seq

    @listing
    def events(self, job_id: str, *, after: int = 0) -> Listing[JobEvent]:
        """What happened to the job, and what happens, until its end. A stream that breaks off is taken up again."""
        while True:
            headers = {"Accept": "text/event-stream"}
            request = Request("GET", f"/jobs/{job_id}/events", {"after": after}, headers)
            response = yield from opened(request, self.options.patient())
            if response.status_code == 204:
                return  # the job is done, and its last event was seen
            stream, before = EventStream(), after
            while chunk := (yield Read(response)):
                for event in stream.feed(chunk):
                    after = event.seq
                    yield Item(event)
            if after == before:
                yield Sleep(RECONNECT_SECONDS)

    @operation
    def logs(self, job_id: str, *, tail: int = 1000, attempt: int | None = None) -> Steps[Sequence[LogLine]]:
        """The last lines of what the service did and the engine said; there in every state."""
        return (yield from self._log_lines(job_id, tail=tail, attempt=attempt))

    @listing
    def follow_logs(self, job_id: str, *, tail: int = 1000, attempt: int | None = None) -> Listing[LogLine]:
        """The last lines of the log, and what is said from then on, until the job is done. Outages are borne."""
        after = None
        while True:
            # First the job: what is said until it is done is in the lines that are read then.
            job = Job.model_validate_json((yield from self._get(f"/jobs/{job_id}", patient=True)).content)
            lines = yield from self._log_lines(job_id, tail=tail, attempt=attempt, after=after)
            for line in lines:
                yield Item(line)
            if job.done:
                return
            after = max((line.seq for line in lines if line.seq is not None), default=after)
            # From here on all there is, and not its end.
            tail = MOST_LOG_LINES
            yield Sleep(LOG_POLL_SECONDS)

    def _log_lines(self, job_id: str, **query: int | None) -> Steps[Sequence[LogLine]]:
        path = f"/jobs/{job_id}/logs"
        text = (yield from self._get(path, patient=True, format="ndjson", **query)).text
        return [LogLine.model_validate_json(line) for line in text.split("\n") if line]

    @operation
    def cancel(self, job_id: str, *, keep_best: bool = False) -> Steps[Job]:
        """Ask a job to stop; with `keep_best` a repair hands over the best it has first."""
        response = yield from self._post(f"/jobs/{job_id}/cancel", {"keep_best": keep_best})
        return Job.model_validate_json(response.content)

    @operation
    def retry(self, job_id: str) -> Steps[Job]:
        """A new job that runs one that is done once more."""
        return Job.model_validate_json((yield from self._post(f"/jobs/{job_id}/retry")).content)

    @operation
    def delete(self, job_id: str) -> Steps[None]:
        """Delete a job that is done, with its files."""
        yield from self._delete(f"/jobs/{job_id}")

    @operation
    def verdict(self, job_id: str, gates: Sequence[str]) -> Steps[Verdict]:
        """What other gates say of a job that has ended; nothing is run again."""
        response = yield from self._post(f"/jobs/{job_id}/verdict", {"gates": [*gates]})
        return Verdict.model_validate_json(response.content)

    @operation
    def artifacts(self, job_id: str) -> Steps[Sequence[Artifact]]:
        """The files of a job."""
        page = (yield from self._get(f"/jobs/{job_id}/artifacts")).json()
        return [Artifact.model_validate(item) for item in page["data"]]

    @operation
    def localization(self, job_id: str) -> Steps[Mapping[str, Any]]:
        """The ranked blocks with their scores."""
        return dict((yield from self._get(f"/jobs/{job_id}/localization")).json())

    @operation
    def report(self, job_id: str) -> Steps[Mapping[str, Any]]:
        """The evidence: what was measured before and after, and what the gates said."""
        return dict((yield from self._get(f"/jobs/{job_id}/report", format="json")).json())

    @operation
    def download_model(
        self,
        job_id: str,
        target: str | Path,
        *,
        format: str | None = None,
        candidate: bool = False,
        on_transfer: OnTransfer | None = None,
    ) -> Steps[Path]:
        """The repaired model into a file or directory. Raises NotFound with the reason when there is none."""
        query = given(format=format, candidate="true" if candidate else None)
        return (yield from self._download(f"/jobs/{job_id}/model", target, on_transfer, query))

    @operation
    def download_report(
        self, job_id: str, target: str | Path, *, format: str = "html", on_transfer: OnTransfer | None = None
    ) -> Steps[Path]:
        """The report as html, json, md or junit, into a file or directory."""
        return (yield from self._download(f"/jobs/{job_id}/report", target, on_transfer, {"format": format}))

    @operation
    def download_artifact(
        self, artifact_id: str, target: str | Path, *, on_transfer: OnTransfer | None = None
    ) -> Steps[Path]:
        """Any file of a job, into a file or directory."""
        return (yield from self._download(f"/artifacts/{artifact_id}/content", target, on_transfer, {}))

    def _download(
        self, path: str, target: str | Path, on_transfer: OnTransfer | None, query: Mapping[str, Any]
    ) -> Steps[Path]:
        return fetched(Request("GET", path, query), Path(target), self.options, on_transfer)


def _spec_part(spec: Mapping[str, Any]) -> FilePart:
    return FilePart("spec", content=json.dumps(spec).encode(), media_type="application/json")


def _replaced(value: Any, old: str, new: str) -> Any:
    """The spec with one reference in place of another, wherever it stands."""
    if isinstance(value, dict):
        return {name: _replaced(item, old, new) for name, item in value.items()}
    return new if value == old else value


def _rfc3339(when: datetime | str | None) -> str | None:
    return when.astimezone().isoformat() if isinstance(when, datetime) else when
