"""Rendered answers are given again for exactly what they show, and all of them together stay small."""

from app.shared.queueing import Look
from app.views import MAX_VIEW_BYTES, MAX_VIEWS, JobView, JobViews

LOOK = Look()


def view(version: int = 1, look: Look | None = None, body: bytes = b"{}") -> JobView:
    return JobView(version, look, done=look is None, etag="", body=body)


def test_a_view_is_of_one_version_and_one_look():
    views = JobViews()
    views.keep("done", view(3))
    views.keep("queued", kept := view(1, LOOK))
    assert views.get("done", 3, Look()) is not None
    assert views.get("done", 4, Look()) is None
    assert views.get("done", None, Look()) is None, "the job is another project's, or gone"
    assert views.get("queued", 1, LOOK) is kept
    assert views.get("queued", 1, Look()) is None
    assert views.get("never asked for", 1, LOOK) is None


def test_views_are_few_and_small():
    views = JobViews()
    views.keep("large", view(body=bytes(MAX_VIEW_BYTES + 1)))
    assert views.get("large", 1, LOOK) is None
    for number in range(MAX_VIEWS + 1):
        views.keep(str(number), view())
    assert views.get("0", 1, LOOK) is None
    assert views.get("1", 1, LOOK) is not None
