"""What an attempt leaves in the store for the next one, on whatever machine. The key stands in the job's row.

It goes with the job: when a job has ended, a sweep removes all that its attempts left.
"""

import obstore
from obstore.store import ObjectStore
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker
from ulid import ULID

from app.shared import storage
from app.shared.jobs import DONE, Claim, fence
from app.shared.tables import Job

CHECKPOINTS = "checkpoints"
FREE_BATCH = 50


def checkpoint_prefix(job_id: str) -> str:
    """Where all that a job's attempts left for each other is."""
    return f"{CHECKPOINTS}/{job_id}"


def new_checkpoint_key(claim: Claim) -> str:
    """A key nobody has used: a worker that lost its lease may still be writing to its own."""
    return f"{checkpoint_prefix(claim.job_id)}/{claim.attempt}-{ULID()}"


def record_checkpoint(session: Session, claim: Claim, key: str) -> str | None:
    """The next attempt begins with this object; gives the one nobody needs now: the one before, if any.

    Or `key` itself, when the lease is lost. Not a change a reader can see.
    """
    held = session.execute(select(Job.checkpoint_key).where(*fence(claim)).with_for_update()).one_or_none()
    if held is None:
        return key
    noted = update(Job).where(*fence(claim)).values(checkpoint_key=key)
    session.execute(noted.execution_options(synchronize_session=False))
    return held.checkpoint_key


def free_checkpoints(sessions: sessionmaker[Session], store: ObjectStore) -> None:
    """Remove what the attempts of ended jobs left. Where the store fails, the row still names it for the next sweep."""
    with sessions() as session:
        # Not IS NOT NULL, for which SQLite reads the table.
        ended = select(Job.id).where(Job.checkpoint_key > "", Job.status.in_(DONE)).limit(FREE_BATCH)
        job_ids = session.scalars(ended).all()
    for job_id in job_ids:
        for page in obstore.list(store, checkpoint_prefix(job_id)):
            for item in page:
                storage.delete(store, item["path"])
        with sessions.begin() as session:
            session.execute(update(Job).where(Job.id == job_id).values(checkpoint_key=None))
