"""What an engine says while it runs, as rows of the job's history: there at once, whatever becomes of its worker.

The rows of one attempt hold so much at most; older ones make room. They are no events: `/logs` shows them, `/events`
does not, and the job's `version` does not grow with them.
"""

from collections.abc import Sequence

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.jobs import Claim, fence
from app.shared.tables import Job, JobEvent

LOG = "job.log"
ATTEMPT_BYTES = 256 * 1024


def record_log(
    session: Session, claim: Claim, lines: bytes, *, start: int, forgetting: Sequence[int] = ()
) -> int | None:
    """Add whole lines, which begin at byte `start` of all the attempt has said, and drop the rows `forgetting`.

    Returns the row's `seq`; None when the lease is lost, and nothing was written.
    """
    if session.scalar(select(Job.id).where(*fence(claim)).with_for_update()) is None:
        return None
    # No database takes a NUL in JSON as it is.
    text = lines.decode("utf-8", "replace").replace("\x00", "\ufffd")
    data = {"attempt": claim.attempt, "text": text, "start": start, "end": start + len(lines)}
    row = insert(JobEvent).values(job_id=claim.job_id, type=LOG, data=data, created_at=db_now())
    if forgetting:
        session.execute(delete(JobEvent).where(JobEvent.job_id == claim.job_id, JobEvent.seq.in_(forgetting)))
    return session.execute(row.returning(JobEvent.seq)).scalar_one()
