"""The pairs of a job's `metadata` as rows, to find jobs by them.

By a digest: JSON is searched differently by every database, no index would hold the longest pair, and no text column
of Postgres takes every string.
"""

import hashlib
import json
from collections.abc import Mapping

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.shared.tables import Job, JobLabel


def add_labels(session: Session, job: Job, metadata: Mapping[str, str]) -> None:
    """Make a new job be found by its metadata."""
    session.add_all(
        JobLabel(job_id=job.id, digest=_digest(key, value), project_id=job.project_id)
        for key, value in metadata.items()
    )


def has_label(project_id: str, key: str, value: str) -> ColumnElement[bool]:
    """Of a job's row of that project: its metadata has this pair."""
    # Not a subquery that looks at the outer row: neither database could begin with the labels, where there are few.
    labelled = (JobLabel.project_id == project_id, JobLabel.digest == _digest(key, value))
    return Job.id.in_(select(JobLabel.job_id).where(*labelled))


def _digest(key: str, value: str) -> str:
    """As the migration that made the first rows has it."""
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()
