"""What is left when it is over: every accepted job done once, with its own result, and nothing that belongs to none.

Nothing is passed over. Inspections are held against the models, one for each; unfinished uploads are what only some
faults may leave, and only what the service's own sweep removes.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import obstore
import psutil
from sqlalchemy import func, select

from app.shared import storage
from app.shared.jobs import DONE
from app.shared.leftovers import sweep_attempts, sweep_contents
from app.shared.models import INSPECT, INSPECTING, READY
from app.shared.tables import Artifact, Attempt, Job, JobEvent, JobInput, Model
from tests.faults.deployment import Deployment, family
from tests.faults.stream import Stream
from tests.servers import stored_keys

ENDINGS = ("job.succeeded", "job.failed", "job.cancelled")
# As if the day were over after which leftovers are swept.
FROM_NOW = -60.0


@dataclass
class Findings:
    """What all runs of one fault have left so far; `wrong` is empty when all is well."""

    jobs: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    uploads_left: int = 0
    attempts_left: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Rows:
    """The database when nothing moves any more."""

    jobs: dict[str, Job]
    models: Sequence[Model]
    inputs: Sequence[JobInput]
    artifacts: Sequence[Artifact]
    attempts: Sequence[Attempt]
    endings: Counter[str]

    def of_kind(self, *, inspections: bool) -> list[Job]:
        return [job for job in self.jobs.values() if (job.kind == INSPECT) == inspections]


def wait_until_done(deployment: Deployment, *, silence_seconds: float) -> None:
    """Until every job is done and every model looked at, or nothing has come to its end for so long.

    A slow machine is not a stuck service. An inspection may be submitted only after the last job has ended.
    """
    before, changed_at = -1, time.monotonic()
    while time.monotonic() - changed_at < silence_seconds:
        with deployment.sessions() as session:
            models = session.scalar(select(func.count()).where(Model.state == INSPECTING)) or 0
            waiting = session.scalar(select(func.count()).where(Job.status.not_in(DONE))) or 0
            done = session.scalar(select(func.count()).where(Job.status.in_(DONE))) or 0
        if models == waiting == 0:
            return
        deployment.start_ended_workers()
        if done != before:
            before, changed_at = done, time.monotonic()
        time.sleep(0.1)


def audit(deployment: Deployment, stream: Stream, checked: set[str]) -> Findings:
    """Look at database, store, processes and scratch directories. The workers must be idle.

    `checked` gets the keys whose content was looked at, which is not done again in later runs.
    """
    rows = _read(deployment)
    found = Findings(jobs=len(stream.accepted), wrong=[f"refused: {text}" for text in stream.refused])
    _count_jobs(found, rows, stream)
    _look_at_results(found, rows)
    _look_at_objects(found, deployment, rows, checked)
    found.wrong += _leftovers(deployment)
    return found


def _read(deployment: Deployment) -> _Rows:
    with deployment.sessions() as session:
        return _Rows(
            {job.id: job for job in session.scalars(select(Job))},
            *(session.scalars(select(table)).all() for table in (Model, JobInput, Artifact, Attempt)),
            Counter(session.scalars(select(JobEvent.job_id).where(JobEvent.type.in_(ENDINGS)))),
        )


def _count_jobs(found: Findings, rows: _Rows, stream: Stream) -> None:
    told = {job_id for ids in stream.accepted.values() for job_id in ids}
    asked = {job.id for job in rows.of_kind(inspections=False)}
    inspections = Counter(job.model_id for job in rows.of_kind(inspections=True))
    models = {model.id for model in rows.models}
    found.lost = len(told - asked) + len(models - set(inspections))
    found.stuck = sum(job.status not in DONE for job in rows.jobs.values())
    twice = {job_id for job_id, number in rows.endings.items() if number > 1}
    results = Counter((row.job_id, row.name) for row in rows.artifacts)
    twice |= {job_id for (job_id, _), number in results.items() if number > 1}
    # A key that made two jobs, a job nobody was told of (with the model it brought), a model that was looked at twice.
    found.doubled = len(twice) + sum(len(ids) - 1 for ids in stream.accepted.values()) + len(asked - told)
    found.doubled += sum(number - 1 for number in inspections.values()) + max(0, len(models) - len(told))
    found.failures = Counter((job.error or {}).get("code", "") for job in rows.jobs.values() if job.status == "failed")
    found.causes = Counter(attempt.cause or "" for attempt in rows.attempts)
    cancelled = [job.id for job in rows.jobs.values() if job.status == "cancelled"]
    found.wrong += [f"{job_id} was cancelled by nobody" for job_id in cancelled]
    found.wrong += [f"{job_id} has no ending in its history" for job_id in set(rows.jobs) - set(rows.endings)]


def _look_at_results(found: Findings, rows: _Rows) -> None:
    """The attempt that won is the last, and what is there is of that attempt."""
    ends: dict[str, list[Attempt]] = {}
    for attempt in sorted(rows.attempts, key=lambda attempt: attempt.id):
        ends.setdefault(attempt.job_id, []).append(attempt)
    found.wrong += [f"attempt {row.number} of {row.job_id} was never ended" for row in rows.attempts if not row.cause]
    for job in rows.jobs.values():
        causes = [attempt.cause for attempt in ends.get(job.id, [])]
        won = [number for number, cause in enumerate(causes, 1) if cause == "succeeded"]
        if won != ([len(causes)] if job.status == "succeeded" else []):
            found.wrong.append(f"{job.id} is {job.status} after {causes}")
    found.wrong += [
        f"{row.name} of {row.job_id} is of attempt {row.attempt}"
        for row in rows.artifacts
        if row.attempt != rows.jobs[row.job_id].attempt
    ]
    inspected = {job.model_id for job in rows.of_kind(inspections=True) if job.status == "succeeded"}
    found.wrong += [f"{row.id} is {row.state}" for row in rows.models if row.id in inspected and row.state != READY]


def _look_at_objects(found: Findings, deployment: Deployment, rows: _Rows, checked: set[str]) -> None:
    """What rows name is there, with the content it should have; and what no row names, the sweeps take away."""
    store = storage.open_store(deployment.settings.store_url)
    kept = {row.storage_key for row in (*rows.artifacts, *rows.models, *rows.inputs)}
    there = set(stored_keys(deployment.settings))
    found.uploads_left = sum(key.startswith(f"{storage.UPLOADS}/") for key in there)
    found.attempts_left = sum(key.startswith("jobs/") for key in there - kept)
    storage.sweep_uploads(store, older_than_seconds=FROM_NOW)
    sweep_attempts(deployment.sessions, store, since_seconds=86400.0, older_than_seconds=FROM_NOW)
    sweep_contents(deployment.sessions, store, older_than_seconds=FROM_NOW)
    there = set(stored_keys(deployment.settings))
    found.wrong += [f"no object {key}" for key in sorted(kept - there)]
    found.wrong += [f"object of nobody: {key}" for key in sorted(there - kept)]
    for row in rows.artifacts:
        if row.storage_key in there - checked:
            content = bytes(obstore.get(store, row.storage_key).bytes())
            if hashlib.sha256(content).hexdigest() != row.sha256:
                found.wrong.append(f"another content in {row.storage_key}")
            if row.name == "repaired.pt" and content != _repaired(store, rows, rows.jobs[row.job_id]):
                found.wrong.append(f"{row.storage_key} was made of other inputs")
            checked.add(row.storage_key)
    results = {(row.job_id, row.name) for row in rows.artifacts}
    succeeded = [job.id for job in rows.of_kind(inspections=False) if job.status == "succeeded"]
    found.wrong += [f"{job_id} has no model" for job_id in succeeded if (job_id, "repaired.pt") not in results]


def _repaired(store: obstore.store.ObjectStore, rows: _Rows, job: Job) -> bytes:
    """What the engine's double makes of this job: its model, and its data behind."""
    keys = [row.storage_key for row in rows.models if row.id == job.model_id]
    keys += [row.storage_key for row in rows.inputs if row.job_id == job.id]
    return b"".join(bytes(obstore.get(store, key).bytes()) for key in keys)


def _leftovers(deployment: Deployment) -> list[str]:
    """Engines beyond the one that each worker keeps ready, and scratch directories beyond theirs."""
    engines = [process for process in psutil.process_iter(["cmdline"])
               if str(deployment.settings.state_dir) in " ".join(process.info["cmdline"] or [])
               and process.status() != psutil.STATUS_ZOMBIE]  # fmt: skip
    owned = {member.pid for server in deployment.servers.values() for member in family(server.process.pid)}
    workers = sum(name.startswith("worker") and server.process.poll() is None
                  for name, server in deployment.servers.items())  # fmt: skip
    scratch = list((deployment.settings.state_dir / "scratch").glob("job-*"))
    wrong = [f"process of nobody: {process.pid}" for process in engines if process.pid not in owned]
    return wrong + ([f"{len(scratch)} scratch directories of {workers} workers"] if len(scratch) > workers else [])
