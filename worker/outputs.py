"""What an engine leaves, in the store: each file under a key of its attempt, and always its log."""

import tempfile
from functools import partial
from pathlib import Path

from obstore.exceptions import BaseError as StoreError

from app.shared import storage
from app.shared.jobs import StoredArtifact
from app.shared.media_types import media_type_of
from worker.engine_events import NamedArtifact
from worker.engine_process import ProtocolError
from worker.engine_run import Ending, Interruption
from worker.job import Job, persist

LOG_NAME = "engine.log"


def plain_file(directory: Path, item: NamedArtifact) -> Path:
    """The engine's file. A link would make us publish a file of the worker's instead: raises ProtocolError."""
    path = directory / item.name
    if item.name == LOG_NAME or path.is_symlink() or not path.is_file():
        raise ProtocolError(f"an artifact {item.name!r} that is not a plain file of its own")
    return path


def store_file(job: Job, path: Path, kind: str) -> StoredArtifact:
    """Store one file of this attempt, patiently."""
    key = storage.artifact_key(job.claim.job_id, job.claim.attempt, path.name)
    stored = persist(job, partial(storage.put_file, job.bench.store, key, path))
    return StoredArtifact(
        path.name,
        kind,
        media_type_of(path.name),
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        storage_key=stored.storage_key,
    )


def store_log(job: Job, ending: Ending) -> list[StoredArtifact]:
    """The log belongs to every ending that is written; without it nobody can say why a job failed."""
    if isinstance(ending, Interruption) and ending.reason != "cancelled":
        return []
    try:
        # A new directory: in the others the engine may have put a link of that name.
        path = Path(tempfile.mkdtemp(dir=job.scratch.work.parent)) / LOG_NAME
        path.write_bytes(job.engine.log.content())
        return [store_file(job, path, "log")]
    except (StoreError, OSError):
        job.log.exception("the log of the engine could not be stored")
        return []
