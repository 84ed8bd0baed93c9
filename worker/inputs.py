"""What a job needs before it runs: model, data from the store or from where a reference leads, a checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.shared import storage
from app.shared.jobs import record_progress
from app.shared.references import Reference, references_in
from app.shared.tables import Dataset, JobInput
from worker.checkpoints import UnfitCheckpoint, unpack_checkpoints
from worker.job import Job, interruption_of, persist, raise_if_interrupted
from worker.references import TRANSIENT, FetchFailed, fetch_reference, keep_fetched, missing_references, run_watched
from worker.scratch import sweep_scratch

FETCH_RETRY_SECONDS, FETCH_POLL_SECONDS = (1.0, 5.0), 0.1


def fetch_inputs(job: Job) -> dict[str, Any]:
    """Copy model and data sets to the scratch directory and return the engine's request."""
    sweep_scratch(job.scratch.root)
    check = partial(raise_if_interrupted, job)
    model = job.scratch.inputs / "model.pt"
    if job.claim.model_storage_key is not None:
        persist(job, partial(storage.download, job.bench.store, job.claim.model_storage_key, model, on_chunk=check))
    datasets = {}
    # Numbered, not named as uploaded: a customer's file name never becomes a path of ours.
    for number, (name, key, _) in enumerate(job.claim.inputs):
        datasets[name] = str(job.scratch.inputs / f"dataset-{number}")
        persist(job, partial(storage.download, job.bench.store, key, Path(datasets[name]), on_chunk=check))
    for number, (text, reference) in enumerate(missing_references(job.claim).items()):
        datasets[text] = str(job.scratch.inputs / f"fetched-{number}")
        _fetch_reference(job, text, reference, Path(datasets[text]))
    _restore_checkpoint(job)
    return {
        "model": str(model),
        "datasets": datasets,
        "spec": _with_builtins(job),
        "work_dir": str(job.scratch.work),
        "out_dir": str(job.scratch.out),
    }


def _fetch_reference(job: Job, text: str, reference: Reference, path: Path) -> None:
    """Have the file, in the store too and noted as an input, or raise FetchFailed."""
    message = {"percent": 0.0, "message": f"fetching {reference.shown}"[:1000], "step": 0, "total_steps": 0}
    with job.bench.sessions.begin() as session:
        record_progress(session, job.claim, phase="ingesting", progress=message)

    def interrupted() -> bool:
        return interruption_of(job) is not None

    fetch = partial(fetch_reference, reference, path, job.bench.settings)
    for pause_seconds in (*FETCH_RETRY_SECONDS, None):
        try:
            fetched = run_watched(fetch, interrupted, FETCH_POLL_SECONDS)
            break
        except FetchFailed as error:
            transient = error.problem["code"].removeprefix("dataset.") in TRANSIENT
            if not transient or pause_seconds is None or job.bench.stopping.wait(pause_seconds):
                raise
    columns = {**vars(fetched), "name": text, "filename": reference.filename}
    sessions, store = job.bench.sessions, job.bench.store
    persist(job, lambda: keep_fetched(sessions, store, job.claim, path, JobInput(**columns)))


def _with_builtins(job: Job) -> dict[str, Any]:
    """The spec, with a registered dataset that the engine carries under the engine's name for it."""
    spec, there = job.claim.spec, {name for name, _, _ in job.claim.inputs}
    ids = {text for text in references_in(spec).values() if text.startswith("ds_")} - there
    if not ids:
        return spec
    with job.bench.sessions() as session:
        names = {row.id: row.reference for row in session.scalars(select(Dataset).where(Dataset.id.in_(ids)))}
    return {**spec, "datasets": {split: names.get(text, text) for split, text in spec["datasets"].items()}}


def _restore_checkpoint(job: Job) -> None:
    """Begin where an earlier attempt was; where that cannot be, begin again."""
    key, archive = job.claim.checkpoint_key, job.scratch.inputs / "checkpoints.tar"
    if key is None:
        return
    try:
        persist(
            job, partial(storage.download, job.bench.store, key, archive, on_chunk=partial(raise_if_interrupted, job))
        )
        unpack_checkpoints(archive, job.scratch.work, max_bytes=job.bench.limits.checkpoint_bytes)
    except (FileNotFoundError, UnfitCheckpoint) as error:
        job.log.warning("beginning again", error=str(error))
    archive.unlink(missing_ok=True)
