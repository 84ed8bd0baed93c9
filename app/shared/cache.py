"""Whether the same was run before: a key over all that the result of a job hangs on.

Contents count, not where they came from: an upload, a registered dataset and a URL with the same bytes are the same.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.references import parse_reference, references_in
from app.shared.tables import Dataset, Job, JobInput, Model


def cache_key(spec: Mapping[str, Any], *, model_sha256: str, digests: Mapping[str, str], hardware: str) -> str | None:
    """sha256 over model, data, spec with its seed, hardware and the version of the engine.

    `digests` by reference; one that is neither there nor carries its own, e.g. `s3://…`, leaves no key: what it leads
    to is not known, and can change.
    """
    contents = dict(spec)
    for field, text in references_in(spec).items():
        reference = parse_reference(text)
        digest = digests.get(text) or reference.sha256 or (text if reference.kind == "builtin" else None)
        if digest is None:
            return None
        group, _, name = field.partition("/")
        contents[group] = {**contents[group], name: digest}
    everything = [version("archrepair"), model_sha256, hardware, contents]
    return hashlib.sha256(json.dumps(everything, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def key_of_job(session: Session, job_id: str) -> str | None:
    """The key of a job that has run here: by now the bytes behind its references are known. None for one without."""
    job = session.get_one(Job, job_id)
    model_sha256 = session.scalar(select(Model.sha256).where(Model.id == job.model_id))
    if model_sha256 is None:
        return None
    inputs = session.execute(select(JobInput.name, JobInput.sha256).where(JobInput.job_id == job_id))
    digests = {row.name: row.sha256 for row in inputs}
    missing = set(references_in(job.spec).values()) - set(digests)
    builtin = select(Dataset.id, Dataset.reference).where(Dataset.id.in_(missing))
    digests |= {row.id: row.reference for row in session.execute(builtin)}
    return cache_key(job.spec, model_sha256=model_sha256, digests=digests, hardware=job.hardware)


def find_cached(session: Session, project_id: str, key: str) -> Job | None:
    """The project's newest job of that key that succeeded; nobody deletes it before the transaction ends."""
    mine = (Job.project_id == project_id, Job.cache_key == key, Job.status == "succeeded")
    there = (Job.deleted_at.is_(None), or_(Job.expires_at.is_(None), Job.expires_at > db_now()))
    newest = select(Job).where(*mine, *there).order_by(Job.created_at.desc(), Job.id.desc()).limit(1)
    return session.scalar(newest.with_for_update(read=True))
