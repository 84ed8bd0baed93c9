"""Quotas as a route meets them: one call at the start of its transaction."""

from sqlalchemy.orm import Session

from app.errors import ApiProblem
from app.shared.quotas import QuotaExceeded, lock_project, require_quota
from app.shared.settings import Settings


def require_quotas(session: Session, settings: Settings, project_id: str, **adding: int) -> None:
    """Raises ApiProblem `quota.…` unless the project may have that much more of each, e.g. `queued_jobs=1`.

    Call it before other rows are locked: the project stays locked until the transaction ends, so that requests that
    come at once are counted one after the other.
    """
    project = lock_project(session, project_id)
    try:
        for name, number in adding.items():
            if number:
                require_quota(session, settings, project, name, adding=number)
    except QuotaExceeded as error:
        detail = f"{str(error)[0].upper()}{str(error)[1:]}."
        hint = f"{error.hint} Or ask the operator for more."
        raise ApiProblem(f"quota.{error.name}", detail, hint=hint) from None
