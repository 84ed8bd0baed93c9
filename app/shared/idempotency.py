"""How long the answers to POSTs with an `Idempotency-Key` are kept."""

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.tables import IdempotencyKey

KEEP_ANSWERS_SECONDS = 25 * 3600.0  # a day is promised


def forget_old_answers(session: Session) -> None:
    """Remove the answers that nobody was promised any longer."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < db_now() - KEEP_ANSWERS_SECONDS))
