"""What is left when it is over: every accepted job done once, and nothing that belongs to none."""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field

import obstore
import psutil
from sqlalchemy import func, select

from app.shared.jobs import DONE
from app.shared.models import INSPECT
from app.shared.storage import open_store
from app.shared.tables import Artifact, Attempt, Job, JobEvent, JobInput, Model
from tests.faults.deployment import Deployment, family
from tests.faults.stream import Stream
from tests.servers import stored_keys

ENDINGS = ("job.succeeded", "job.failed", "job.cancelled")


@dataclass
class Findings:
    """What one run of one fault left; `wrong` is empty when all is well."""

    jobs: int = 0
    failed: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    recovery_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def wait_until_done(deployment: Deployment, *, silence_seconds: float) -> None:
    """Until every job is done, or none has come to its end for so long: a slow machine is not a stuck service."""
    before, changed_at = -1, time.monotonic()
    while time.monotonic() - changed_at < silence_seconds:
        with deployment.sessions() as session:
            counts = dict(
                session.execute(select(Job.status.in_(DONE), func.count()).group_by(Job.status.in_(DONE))).all()
            )
        if not counts.get(False):
            return
        if counts.get(True, 0) != before:
            before, changed_at = counts.get(True, 0), time.monotonic()
        time.sleep(0.1)


def audit(deployment: Deployment, stream: Stream) -> Findings:
    """Look at database, store, processes and scratch directories. The workers must be idle."""
    found = Findings(jobs=len(stream.accepted), wrong=[f"refused: {text}" for text in stream.refused])
    with deployment.sessions() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        endings = Counter(session.scalars(select(JobEvent.job_id).where(JobEvent.type.in_(ENDINGS))))
        artifacts = session.scalars(select(Artifact)).all()
        models, inputs = session.scalars(select(Model)).all(), session.scalars(select(JobInput)).all()
        open_attempts = session.scalar(select(func.count()).select_from(Attempt).where(Attempt.ended_at.is_(None)))
    repairs = {job.id for job in jobs.values() if job.kind != INSPECT}  # each new model is inspected besides
    told = {job_id for ids in stream.accepted.values() for job_id in ids}
    found.lost = len(told - set(jobs))
    found.stuck = sum(job.status not in DONE for job in jobs.values())
    found.failed = sum(job.status == "failed" for job in jobs.values())
    twice = {job_id for job_id, number in endings.items() if number > 1}
    results = Counter((row.job_id, row.name) for row in artifacts)
    twice |= {job_id for (job_id, _), number in results.items() if number > 1}
    found.doubled = len(twice) + sum(len(ids) > 1 for ids in stream.accepted.values()) + len(repairs - told)
    if open_attempts:
        found.wrong.append(f"{open_attempts} attempts that nobody ended")
    kept = {row.storage_key for row in (*artifacts, *models, *inputs)}
    found.wrong += _wrong_objects(deployment, artifacts, kept)
    found.wrong += _leftovers(deployment)
    succeeded = [job_id for job_id in repairs if jobs[job_id].status == "succeeded"]
    found.wrong += [f"{job_id} has no model" for job_id in succeeded if (job_id, "repaired.pt") not in results]
    return found


def _wrong_objects(deployment: Deployment, artifacts: list[Artifact], kept: set[str]) -> list[str]:
    store = open_store(deployment.settings.store_url)
    there = set(stored_keys(deployment.settings))
    wrong = [f"no object {key}" for key in kept - there]
    for row in artifacts:
        if row.storage_key in there:
            content = bytes(obstore.get(store, row.storage_key).bytes())
            if hashlib.sha256(content).hexdigest() != row.sha256:
                wrong.append(f"another content in {row.storage_key}")
    # Unfinished uploads are swept after a day (`FORGOTTEN_UPLOAD_SECONDS`), and so not looked for here.
    return wrong + [f"object of nobody: {key}" for key in sorted(there - kept) if not key.startswith("tmp/")]


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
