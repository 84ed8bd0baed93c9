"""Faults against methods, over HTTP: what each rung of the ladder is worth, and what each part of `auto` is worth.

Every case is a model, a fault and a draw per seed; every row is a change to the spec. `auto` sets no knob; every other
row gets the seconds that `auto` spent on the same draw. Reports are kept, so that a run goes on where it stopped, and
the tables are made from them. Images that any row was developed on (`benchmarks.cifar`) are in no draw.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from archrepair_client import ArchRepair
from archrepair_client.running import running_service
from archrepair_client.types import Job
from archrepair_core.data.corruptions import at_severity
from benchmarks.cifar import OUT, PREPROCESSING, find_data, load_cifar, order_of_test_images
from benchmarks.faults import damage_
from benchmarks.zoo import OUT as ZOO_OUT
from benchmarks.zoo import load_network

NUM_REPAIR, NUM_TEST, NUM_REPLAY = 1000, 5000, 4000
# The draws 0 to 15 were looked at before defaults were changed.
SEEDS = (16, 17, 18)
Images = npt.NDArray[np.uint8]
Sets = dict[str, tuple[Images, npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class Case:
    """A model with a fault, and how one draw of data is made: sets by role from a seed."""

    what: str
    model: Callable[[Path], Path]
    draw: Callable[[int], Sets]


@dataclass(frozen=True)
class Row:
    """One way to repair: changes to the spec, the roles it is not given, and whether the repair set has labels."""

    spec: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    labelled: bool = True


def _field_sets(seed: int, *, change: Callable[[Images, Sequence[int]], Images] | None = None) -> Sets:
    """Disjoint repair and test images, drawn without looking at the model's errors."""
    images, labels = load_cifar("test")
    rows = order_of_test_images(seed)
    sets = {}
    for role, chosen in (("repair", rows[:NUM_REPAIR]), ("test", rows[NUM_REPAIR : NUM_REPAIR + NUM_TEST])):
        pixels = images[chosen] if change is None else change(images[chosen], [int(row) for row in chosen])
        sets[role] = (pixels, labels[chosen])
    return sets


def _with_known(sets: Sets, known: tuple[Images, npt.NDArray[np.int64]]) -> Sets:
    return sets | {"replay": known, "regression": known}


def _training_images(count: int) -> tuple[Images, npt.NDArray[np.int64]]:
    images, labels = load_cifar("train")
    return images[:count], labels[:count]


def _noisy(seed: int) -> Sets:
    noise = at_severity("gaussian_noise", 3, 32)
    return _with_known(_field_sets(seed, change=noise), _training_images(NUM_REPLAY))


def _zoo_model(name: str) -> Callable[[Path], Path]:
    return lambda _scratch: ZOO_OUT / f"{name}.pt"


def _damaged_model(name: str, block: str, kind: str) -> Callable[[Path], Path]:
    def make(scratch: Path) -> Path:
        network = damage_(load_network(name), block, kind, seed=0)
        torch.jit.trace(network, torch.zeros(2, 3, 32, 32)).save(str(scratch / "damaged.pt"))
        return scratch / "damaged.pt"

    return make


CASES: dict[str, Case] = {
    "jpeg": Case(
        "ResNet-20 trained on lossless images, served JPEG; the 4,000 lossless images are replay and regression set",
        lambda _scratch: find_data() / "resnet20-cifar10.torchscript.pt",
        lambda seed: _with_known(_field_sets(seed), load_cifar("lossless-train4k")),
    ),
    "overfitted": Case(
        "ResNet-8 overfitted to 10,000 images, which are replay and regression set",
        _zoo_model("resnet8-overfitted"),
        lambda seed: _with_known(_field_sets(seed), _training_images(10_000)),
    ),
    "noise": Case(
        "ResNet-18 of the zoo, served noise of severity 3; 4,000 training images are replay and regression set",
        _zoo_model("resnet18"),
        _noisy,
    ),
    "damaged": Case(
        "MobileNetV3 of the zoo with zeroed filters in one block; 4,000 training images are replay and regression set",
        _damaged_model("mobilenetv3", "features.6", "zeroed"),
        lambda seed: _with_known(_field_sets(seed), _training_images(NUM_REPLAY)),
    ),
}
# Room for the whole cell: within the default limits little of it would be left.
ROOMY = {"max_latency_ratio": 2, "max_params_ratio": 2, "max_macs_ratio": 2}
NETWORK = {"repair": {"method": "weights", "level": "network"}}
ROWS: dict[str, Row] = {
    "auto": Row(),
    "auto without replay": Row(without=("replay",)),
    "auto without field labels": Row(labelled=False),
    "batch-norm only": Row({"repair": {"method": "bn"}}),
    "align only, no labels": Row({"repair": {"method": "align"}}, labelled=False),
    "network fine-tune without replay": Row(NETWORK, without=("replay",)),
    "network fine-tune": Row(NETWORK),
    "block search": Row({"repair": {"method": "block_search"}}),
    "archrepair": Row({"repair": {"method": "archrepair", **ROOMY}}),
    "weights of one block": Row({"repair": {"method": "weights", "level": "block"}}),
    "weights of one layer": Row({"repair": {"method": "weights", "level": "layer"}}),
    "weights of some neurons": Row({"repair": {"method": "weights", "level": "neuron"}}),
    "arachne": Row({"repair": {"method": "arachne"}}),
    "apricot": Row({"repair": {"method": "apricot"}}),
    "mode": Row({"repair": {"method": "mode"}}),
    "sensei": Row({"repair": {"method": "sensei"}}),
    "few-shot mix": Row({"repair": {"method": "fewshot_mix"}}),
    "deeprepair": Row({"repair": {"method": "deeprepair"}}),
    "certify": Row({"repair": {"method": "certify"}}),
    "auto, no match": Row({"repair": {"augment": "flip_crop"}}),
    "auto, no restoration": Row({"repair": {"restoration": 0}}),
    "auto, no distillation": Row({"repair": {"distillation": 0}}),
    "auto, no interpolation": Row({"repair": {"interpolate": False}}),
    "auto, no search": Row({"repair": {"level": "network"}}),
    "auto, blocks only": Row({"repair": {"level": "block"}}),
    "auto, random block only": Row({"repair": {"level": "block"}, "localization": {"method": "random"}}),
    "auto, blocks only, no cache": Row({"repair": {"level": "block", "cache_gb": 0}}),
}
REFERENCE_ROW = "auto"


def run_row(client: ArchRepair, case: Case, row: Row, *, scratch: Path, sets: Sets, budget: float | None,
            seed: int, keep: Path) -> Job:  # fmt: skip
    """One job to its end, its report kept."""
    files = {}
    for role, (images, labels) in sets.items():
        if role not in row.without:
            arrays = (
                {"images": images} if role == "repair" and not row.labelled else {"images": images, "labels": labels}
            )
            np.savez(scratch / f"{role}.npz", **arrays)
            files[role] = scratch / f"{role}.npz"
    spec: dict[str, Any] = {"seed": seed, "preprocessing": PREPROCESSING, "evaluation": {"controls": "none"}}
    spec |= {key: dict(value) for key, value in row.spec.items()}
    if budget is not None:
        spec.setdefault("repair", {})["budget_seconds"] = budget
    job = client.jobs.create_and_wait(spec=spec, model=case.model(scratch), datasets=files)
    if job.status != "succeeded":
        sys.exit(f"{job.id} {job.status}: {job.error}")
    client.jobs.download_report(job.id, keep, format="json")
    return job


def report_path(case: str, row: str, seed: int, budget: float | None) -> Path:
    """Where the report of one row on one draw is kept."""
    name = row.replace(",", "").replace(" ", "-")
    folder = "ladder" if budget is None else f"ladder-{budget:.0f}s"
    return OUT / folder / f"{case}-{name}-{seed}.json"


def read_report(path: Path) -> dict[str, Any]:
    """A kept report."""
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def repair_seconds(report: Mapping[str, Any]) -> float:
    """Seconds for localizing and repairing; measuring the original and the result costs every method the same."""
    return float(report["seconds"]["localizing"] + report["seconds"]["repairing"])


COLUMNS: dict[str, Callable[[Mapping[str, Any]], tuple[float, int]]] = {
    "test accuracy %": lambda r: (100 * r["test"]["accuracy"]["after"], 2),
    "change, points": lambda r: (100 * r["test"]["accuracy"]["change"], 2),
    "repair rate %": lambda r: (100 * r["test"]["repair_rate"]["value"], 1),
    "broken %": lambda r: (100 * r["test"]["broken_rate"]["value"], 2),
    "known images broken %": lambda r: (100 * r["regression"]["broken_rate"]["value"], 2),
    "repair seconds": lambda r: (repair_seconds(r), 0),
}


def make_table(case: str, rows: Sequence[str], seeds: Sequence[int], *, budget: float | None) -> str:
    """One line per row that has run: mean over seeds with the lowest and the highest, and the verdict of each seed."""
    kept = {row: [report_path(case, row, seed, budget) for seed in seeds] for row in rows}
    done = {row: [read_report(path) for path in paths if path.is_file()] for row, paths in kept.items()}
    reports = {row: found for row, found in done.items() if found}
    if not reports:
        return ""
    original = [100 * report["test"]["accuracy"]["before"] for report in next(iter(reports.values()))]
    lines = [
        f"**{case}**: {CASES[case].what}.",
        "",
        f"| row | seeds | {' | '.join(COLUMNS)} | verdicts | chosen |",
        "|---" * (len(COLUMNS) + 4) + "|",
        f"| original | {len(original)} | {spread(original, 2)} |" + " |" * (len(COLUMNS) + 1),
    ]
    for row, found in reports.items():
        cells = [spread([column(r)[0] for r in found], column(found[0])[1]) for column in COLUMNS.values()]
        verdicts = ", ".join(report["verdict"] for report in found)
        chosen = "; ".join(dict.fromkeys(r["chosen"]["name"] if r["chosen"] else "original" for r in found))
        lines.append(f"| {row} | {len(found)} | {' | '.join(cells)} | {verdicts} | {chosen} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range."""
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def run_missing(cases: Sequence[str], rows: Sequence[str], seeds: Sequence[int], *, budget: float | None) -> None:
    """Start the service and run what has no report yet; the reference row first, since it sets the seconds of all
    others where `budget` does not."""
    report_path("", "", 0, budget).parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as state,
        running_service(Path(state)) as service,
        ArchRepair(base_url=service.url, api_key=service.api_key) as client,
    ):
        for case in cases:
            for seed in seeds:
                for row in dict.fromkeys(rows if budget else [REFERENCE_ROW, *rows]):
                    keep = report_path(case, row, seed, budget)
                    if keep.is_file():
                        continue
                    seconds = budget
                    if budget is None and row != REFERENCE_ROW:
                        seconds = repair_seconds(read_report(report_path(case, REFERENCE_ROW, seed, None)))
                    with tempfile.TemporaryDirectory() as scratch:
                        job = run_row(client, CASES[case], ROWS[row], scratch=Path(scratch),
                                      sets=CASES[case].draw(seed), budget=seconds, seed=seed, keep=keep)  # fmt: skip
                    sys.stderr.write(f"{case}, seed {seed}, {row}: {job.verdict}, {(job.result or {})['reason']}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["jpeg"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--budget", type=float, help="seconds for every row; such runs are kept apart")
    parser.add_argument("--only-table", action="store_true", help="run nothing, read the reports of earlier runs")
    options = parser.parse_args(argv)
    if not options.only_table:
        run_missing(options.cases, options.rows, options.seeds, budget=options.budget)
    for case in options.cases:
        sys.stdout.write(make_table(case, list(ROWS), options.seeds, budget=options.budget) + "\n\n")
    sys.stdout.write(f"torch {torch.__version__}, {os.cpu_count()} CPUs, {platform.machine()}\n")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*torch.jit")  # writing TorchScript is what these models are for
    sys.exit(main())
