"""The paper's method against weights alone: the same block, the same seconds, on a realistic fault.

ResNet-20, trained on lossless CIFAR-10, is served JPEG images. Per seed: 1,000 of them to repair with (validation is
cut from them), 4,000 lossless training images as replay, 5,000 other JPEG images to test on. Runs the engine without
the service; a report that is there is not made again. Prints a Markdown table made from the reports.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archrepair_core.repair import RepairRequest, repair_model
from archrepair_core.spec import RepairSpec
from benchmarks.jpeg_shift import PREPROCESSING, draw_sets, find_data, spread

# Room for the whole cell: within the default limits of 1.1 and 1.25 little of it would be left.
ROOM = {"max_latency_ratio": 10, "max_params_ratio": 10, "max_macs_ratio": 10}
METHODS: dict[str, dict[str, Any]] = {
    "weights of the block": {"method": "weights", "level": "block"},
    "`archrepair`": {"method": "archrepair", **ROOM},
    "`archrepair`, plain loss, not walked back": {
        "method": "archrepair",
        "distillation": 0,
        "interpolate": False,
        **ROOM,
    },
    "`archrepair`, perturbation": {"method": "archrepair", "select": "perturbation", **ROOM},
}


def run_once(data: Path, out: Path, name: str, *, seed: int, seconds: float) -> None:
    """One method on one draw; its report is kept."""
    keep = report_path(out, name, seed=seed)
    if keep.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        for folder in ("work", "out"):
            (Path(scratch) / folder).mkdir()
        files = draw_sets(data, Path(scratch), seed=seed)
        files = {"repair": files["repair"], "test": files["test"], "replay": data / "cifar10-lossless-train4k.parquet"}
        spec = {
            "datasets": {role: f"upload:{role}" for role in files},
            "preprocessing": PREPROCESSING,
            "localization": {"method": "spectrum+gradient"},
            "repair": METHODS[name] | {"budget_seconds": seconds, "augment": "flip"},
            "seed": seed,
        }
        request = RepairRequest(
            data / "resnet20-cifar10.torchscript.pt",
            {f"upload:{role}": path for role, path in files.items()},
            RepairSpec.model_validate(spec),
            Path(scratch) / "work",
            Path(scratch) / "out",
        )
        outcome = repair_model(request, lambda _progress: None)
        (Path(scratch) / "out" / "report.json").rename(keep)
    sys.stderr.write(f"seed {seed}: {name}: {outcome.verdict}, {outcome.result['reason']}\n")


def report_path(out: Path, name: str, *, seed: int) -> Path:
    """Where the report of one method on one draw is kept."""
    return out / f"archrepair-seed-{seed}-{list(METHODS).index(name)}.json"


def _percent(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(report: Mapping[str, Any]) -> float | None:
        found: Any = report
        for part in path:
            found = found[part] if found is not None else None
        return None if found is None else 100 * found

    return read


COLUMNS: dict[str, tuple[Callable[[Mapping[str, Any]], float | None], int]] = {
    "test accuracy %": (_percent("test", "accuracy", "after"), 2),
    "broken %": (_percent("test", "broken_rate", "value"), 2),
    "validation: supernet %": (lambda report: _percent("search", "supernet_accuracy")(report["trials"][0]), 1),
    "derived, untrained %": (lambda report: _percent("search", "derived_accuracy")(report["trials"][0]), 1),
    "derived, trained %": (lambda report: _percent("validation", "accuracy")(report["trials"][0]), 1),
    "skips among the new operations %": (lambda report: _skips(report["trials"][0]), 0),
    "steps": (lambda report: float(report["trials"][0]["training"]["steps"]), 0),
    "repair seconds": (lambda report: report["seconds"]["repairing"], 0),
}


def _skips(trial: Mapping[str, Any]) -> float | None:
    new = [
        edge["operation"]
        for edit in trial["genotype"]["edits"]
        for edge in edit["edges"]
        if edge["operation"] != "original"
    ]
    return 100 * new.count("skip_connect") / len(new) if new else None


def make_table(out: Path, seeds: int) -> str:
    """One row per method that was run on every draw: mean over seeds, lowest and highest."""
    lines = [f"| method | {' | '.join(COLUMNS)} | blocks | outcomes |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name in METHODS:
        paths = [report_path(out, name, seed=seed) for seed in range(seeds)]
        if not all(path.exists() for path in paths):
            continue
        reports = [json.loads(path.read_text()) for path in paths]
        if len(lines) == 2:
            before = spread([100 * report["test"]["accuracy"]["before"] for report in reports], 2)
            lines.append(f"| original | {before} |" + " |" * (len(COLUMNS) + 1))
        cells = []
        for read, digits in COLUMNS.values():
            values = [value for value in map(read, reports) if value is not None]
            cells.append(spread(values, digits) if values else "–")
        blocks = ", ".join(report["trials"][0]["genotype"]["scope"][0] for report in reports)
        outcomes = ", ".join(report["outcome"] for report in reports)
        lines.append(f"| {name} | {' | '.join(cells)} | {blocks} | {outcomes} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every method on every draw and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="budget of every repair (%(default)s)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"), help="reports go here (%(default)s)")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    data = find_data()
    for seed in range(options.seeds):
        for name in options.methods:
            run_once(data, options.out, name, seed=seed, seconds=options.seconds)
    sys.stdout.write(make_table(options.out, options.seeds) + "\n")
    sys.stdout.write(f"\n{options.seeds} seeds, {options.seconds:.0f} s, {os.cpu_count()} CPUs, {platform.machine()}\n")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch announces the end of TorchScript
    sys.exit(main())
