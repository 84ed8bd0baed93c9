"""Cases × methods × seeds, over HTTP through the whole service; what has run is kept, and not run again."""

import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from archrepair_client import ArchRepair
from archrepair_client.running import running_service
from archrepair_client.types import Job
from benchmarks.cases import CASES, Sets, of_failures
from benchmarks.cifar import OUT
from benchmarks.methods import Method, method_of
from benchmarks.zoo import right_answers

Protocol = Literal["honest", "paper"]
RUNS = OUT / "runs"


@dataclass(frozen=True)
class Run:
    """One cell of the table; `seconds` None are those of the case."""

    case: str
    method: str
    seed: int
    protocol: Protocol = "honest"
    seconds: float | None = None

    @property
    def budget(self) -> float:
        """Seconds for localizing and repairing."""
        return CASES[self.case].seconds if self.seconds is None else self.seconds

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from other runs in a table of results."""
        return (self.protocol, self.case, self.method, self.seed, self.budget)

    @property
    def report(self) -> Path:
        """Where its report is kept; the answers stand beside it as .npz."""
        name = f"{self.method.replace(',', '').replace(' ', '-')}-{self.seed}.json"
        return RUNS / self.protocol / f"{self.budget:.0f}s" / self.case / name

    @property
    def answers(self) -> Path:
        """Where the answers before and after are kept."""
        return self.report.with_suffix(".npz")


def run_missing(runs: Sequence[Run], *, published: Collection[tuple[object, ...]] = (), again: bool = False) -> None:
    """Start the service and run what has neither run here nor is `published`, by `Run.key`; or all of it `again`."""
    missing = [run for run in runs if again or (not run.report.is_file() and run.key not in published)]
    if not missing:
        return
    with (
        tempfile.TemporaryDirectory() as state,
        running_service(Path(state)) as service,
        ArchRepair(base_url=service.url, api_key=service.api_key) as client,
    ):
        for place, run in enumerate(missing, start=1):
            with tempfile.TemporaryDirectory() as scratch:
                job = run_one(client, run, Path(scratch))
            sys.stderr.write(
                f"{place} of {len(missing)}: {run.case}, {run.method}, seed {run.seed}: "
                f"{job.verdict}, {(job.result or {})['reason']}\n"
            )


def run_one(client: ArchRepair, run: Run, scratch: Path) -> Job:
    """One job to its end, its report and answers kept; a job that fails ends the benchmark."""
    case, method = CASES[run.case], method_of(run.method)
    model = case.model(scratch)
    sets = case.draw(run.seed)
    if run.protocol == "paper":
        sets = of_failures(sets, _right_answers(model, sets, case.preprocessing), seed=run.seed)
    job = client.jobs.create_and_wait(spec=spec_of(run), model=model, datasets=_write_sets(sets, method, scratch))
    if job.status != "succeeded":
        sys.exit(f"{run}: {job.id} {job.status}: {job.error}")
    run.report.parent.mkdir(parents=True, exist_ok=True)
    answers = next(artifact for artifact in client.jobs.artifacts(job.id) if artifact.kind == "predictions")
    client.jobs.download_artifact(answers.id, run.answers)
    client.jobs.download_report(job.id, run.report, format="json")
    return job


def spec_of(run: Run) -> dict[str, Any]:
    """The spec of its job, but for the data."""
    case, method = CASES[run.case], method_of(run.method)
    spec: dict[str, Any] = {"seed": run.seed, "preprocessing": dict(case.preprocessing)}
    spec |= {"evaluation": {"controls": "none"}} | {key: dict(value) for key, value in method.spec.items()}
    spec["repair"] = spec.get("repair", {}) | {"budget_seconds": run.budget}
    return spec if method.gates is None else spec | {"gates": list(method.gates)}


def _write_sets(sets: Sets, method: Method, scratch: Path) -> Mapping[str, Path]:
    files = {}
    for role, (images, labels) in sets.items():
        if role not in method.without:
            unlabelled = role == "repair" and not method.labelled
            files[role] = scratch / f"{role}.npz"
            np.savez(files[role], **({"images": images} if unlabelled else {"images": images, "labels": labels}))
    return files


def _right_answers(model: Path, sets: Sets, preprocessing: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Of the repair inputs, then of the test inputs; the model is one the benchmark made or ships."""
    network = torch.jit.load(str(model)).eval()
    return np.concatenate([right_answers(network, *sets[role], preprocessing) for role in ("repair", "test")])
