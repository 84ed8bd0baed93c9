"""Answers about jobs that were rendered already: whoever polls mostly hears again what it knows."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from app.shared.queueing import Look

MAX_VIEWS = 1024
# Of as many jobs a view can be made at once, and of each by one thread while the others wait for it.
NUM_MAKING = 64
# A job that tells more than this is rendered anew each time, so that all views together stay small.
MAX_VIEW_BYTES = 32 * 1024


@dataclass(frozen=True)
class JobView:
    """A job as JSON, at one `version`. `look` is what was seen of the queues, None where it does not depend on them."""

    version: int
    look: Look | None
    done: bool
    etag: str
    body: bytes


class JobViews:
    """The views of the jobs that were asked for last, by id."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, JobView] = OrderedDict()
        self._changing = threading.Lock()
        self._making = tuple(threading.Lock() for _ in range(NUM_MAKING))

    def making(self, job_id: str) -> threading.Lock:
        """To be held while a view is made: when the queues were looked at anew, all who poll a job would make one."""
        return self._making[hash(job_id) % NUM_MAKING]

    def get(self, job_id: str, version: int | None, look: Look) -> JobView | None:
        """The view, if the job and its place in the queue are still what it shows."""
        view = self._views.get(job_id)
        if view is None or view.version != version:
            return None
        return view if view.look is None or view.look is look else None

    def keep(self, job_id: str, view: JobView) -> None:
        """Keep this view instead of an older one, and let go of the one that was made longest ago."""
        if len(view.body) > MAX_VIEW_BYTES:
            return
        with self._changing:
            self._views.pop(job_id, None)
            self._views[job_id] = view
            if len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
