"""Cases × methods × seeds, over HTTP through the whole service; what has run is kept, and not run again."""

import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
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
# Rounding may turn an answer on another machine; two networks of one recipe answer some 3 % of the inputs differently.
MAX_TURNED = 0.005
Right = npt.NDArray[np.bool_]


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
    def draw(self) -> tuple[object, ...]:
        """What it shares with the runs it is compared with, input by input."""
        return (self.protocol, self.case, self.seed, self.budget)

    @property
    def report(self) -> Path:
        """Where its report is kept; the answers stand beside it as .npz."""
        name = f"{self.method.replace(',', '').replace(' ', '-')}-{self.seed}.json"
        return RUNS / self.protocol / f"{self.budget:.0f}s" / self.case / name

    @property
    def answers(self) -> Path:
        """Where the answers before and after are kept."""
        return self.report.with_suffix(".npz")


def missing_of(
    runs: Sequence[Run], published: Collection[tuple[object, ...]], networks: Mapping[tuple[object, ...], Right]
) -> list[Run]:
    """What has neither run here nor is `published`, by `Run.key`.

    A draw that was begun elsewhere is missing whole where the network here is another than the published one, which
    answered the test inputs as `networks` says, by `Run.draw`.
    """
    missing = [run for run in runs if not run.report.is_file() and run.key not in published]
    first_of = {run.draw: run for run in reversed(missing)}
    others = {draw for draw in first_of.keys() & networks.keys() if _has_another(first_of[draw], networks[draw])}
    return [run for run in runs if run in missing or (run.draw in others and not run.report.is_file())]


def run_all(runs: Sequence[Run]) -> None:
    """Start the service and run these."""
    if not runs:
        return
    with (
        tempfile.TemporaryDirectory() as state,
        running_service(Path(state)) as service,
        ArchRepair(base_url=service.url, api_key=service.api_key) as client,
    ):
        for place, run in enumerate(runs, start=1):
            with tempfile.TemporaryDirectory() as scratch:
                job = run_one(client, run, Path(scratch))
            sys.stderr.write(
                f"{place} of {len(runs)}: {run.case}, {run.method}, seed {run.seed}: "
                f"{job.verdict}, {(job.result or {})['reason']}\n"
            )


def run_one(client: ArchRepair, run: Run, scratch: Path) -> Job:
    """One job to its end, its report and answers kept; a job that fails ends the benchmark."""
    model, sets = _subject(run, scratch)
    files = _write_sets(sets, method_of(run.method), scratch)
    job = client.jobs.create_and_wait(spec=spec_of(run), model=model, datasets=files)
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


def same_network(right_N: Right, other_N: Right) -> bool:
    """Whether these are the answers of one network to one set of inputs."""
    return len(right_N) == len(other_N) and float((right_N != other_N).mean()) <= MAX_TURNED


def _has_another(run: Run, right_N: Right) -> bool:
    """Whether what is repaired here is another network than the one that gave `right_N`."""
    with tempfile.TemporaryDirectory() as scratch:
        model, sets = _subject(run, Path(scratch))
        here_N = _right_answers(model, sets, CASES[run.case].preprocessing, roles=("test",))
    if same_network(right_N, here_N):
        return False
    sys.stderr.write(f"{run.case}, seed {run.seed}: the published rows repair another network; all of it is run\n")
    return True


def _subject(run: Run, scratch: Path) -> tuple[Path, Sets]:
    """The model and its data."""
    case = CASES[run.case]
    model, sets = case.model(scratch), case.draw(run.seed)
    if run.protocol == "paper":
        sets = of_failures(sets, _right_answers(model, sets, case.preprocessing), seed=run.seed)
    return model, sets


def _right_answers(
    model: Path, sets: Sets, preprocessing: Mapping[str, Any], *, roles: Sequence[str] = ("repair", "test")
) -> Right:
    """Of one role after the other; the model is one the benchmark made or ships."""
    network = torch.jit.load(str(model)).eval()
    return np.concatenate([right_answers(network, *sets[role], preprocessing) for role in roles])
