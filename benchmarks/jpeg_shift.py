"""A realistic fault: ResNet-20, trained on lossless CIFAR-10, served images from a lossy (JPEG) camera pipeline.

Over HTTP, per seed: 1,000 JPEG images to repair with (validation is cut from them), 5,000 others to test on, 4,000
lossless ones as regression set. Rows: the original, batch-norm only, a 12-epoch fine-tune of the whole network, and
`auto` with the seconds that fine-tune took. Writes every job's report and prints a Markdown table made from them.
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
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from archrepair_client.jobs import Job, download, follow_job, submit_job
from archrepair_client.running import running_service

FINE_TUNE_EPOCHS = 12
NUM_REPAIR, NUM_TEST = 1000, 5000
PREPROCESSING = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
DATASETS = {"repair": "upload:repair", "test": "upload:test", "regression": "upload:regression"}
METHODS: dict[str, dict[str, Any]] = {
    "batch-norm only": {"method": "bn"},
    "network fine-tune": {"method": "weights", "level": "network", "epochs": FINE_TUNE_EPOCHS},
    "`auto`": {"method": "auto"},
}


def find_data() -> Path:
    """The folder with the CIFAR-10 files: `$ARCHREPAIR_DATA`, or `shared/data` beside the checkout."""
    found = Path(os.environ.get("ARCHREPAIR_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (found / "cifar10-jpeg-test.parquet").is_file():
        sys.exit(f"{found} has no cifar10-jpeg-test.parquet; set ARCHREPAIR_DATA to the folder that has it")
    return found


def draw_sets(data: Path, target: Path, *, seed: int) -> dict[str, Path]:
    """Disjoint repair and test images, drawn without looking at the model's errors; the regression set is whole."""
    table = pq.read_table(data / "cifar10-jpeg-test.parquet", columns=["image", "label"])
    order = np.random.default_rng(seed).permutation(len(table))
    rows = {"repair": order[:NUM_REPAIR], "test": order[NUM_REPAIR : NUM_REPAIR + NUM_TEST]}
    for name, chosen in rows.items():
        pq.write_table(table.take(pa.array(chosen)), target / f"{name}.parquet")
    return {name: target / f"{name}.parquet" for name in rows} | {
        "regression": data / "cifar10-lossless-train4k.parquet"
    }


def run_job(client: httpx.Client, spec: dict[str, Any], *, model: Path, files: Mapping[str, Path], keep: Path) -> Job:
    """One job to its end, its report kept."""
    job = submit_job(client, spec, model=model, datasets=files)
    job = follow_job(client, job["id"], lambda _job: None)
    if job["status"] != "succeeded":
        sys.exit(f"{job['id']} {job['status']}: {job['error']}")
    download(client, f"/v1/jobs/{job['id']}/report", keep)
    return job


def run_seed(client: httpx.Client, data: Path, out: Path, *, seed: int) -> None:
    """Every method on one draw; `auto` gets the seconds the fine-tune spent on repairing."""
    with tempfile.TemporaryDirectory() as scratch:
        files = draw_sets(data, Path(scratch), seed=seed)
        budget = 0.0
        for name, repair in METHODS.items():
            if repair["method"] == "auto":
                repair = repair | {"budget_seconds": budget}
            spec = {"datasets": DATASETS, "preprocessing": PREPROCESSING, "repair": repair, "seed": seed}
            keep = report_path(out, seed, name)
            job = run_job(client, spec, model=data / "resnet20-cifar10.torchscript.pt", files=files, keep=keep)
            budget = repair_seconds(job["result"])
            sys.stderr.write(f"seed {seed}: {name}: {job['verdict']}, {job['result']['reason']}\n")


def report_path(out: Path, seed: int, name: str) -> Path:
    """Where the report of one method on one draw is kept."""
    return out / f"seed-{seed}-{METHODS[name]['method']}.json"


def repair_seconds(result: Mapping[str, Any]) -> float:
    """Seconds for localizing and repairing; measuring the original and the result costs every method the same."""
    return float(result["seconds"]["localizing"] + result["seconds"]["repairing"])


COLUMNS: dict[str, Callable[[Mapping[str, Any]], tuple[float, int]]] = {
    "test accuracy %": lambda r: (100 * r["test"]["accuracy"]["after"], 2),
    "change, points": lambda r: (100 * r["test"]["accuracy"]["change"], 2),
    "repair rate %": lambda r: (100 * r["test"]["repair_rate"]["value"], 1),
    "broken %": lambda r: (100 * r["test"]["broken_rate"]["value"], 2),
    "regression change, points": lambda r: (100 * r["regression"]["accuracy"]["change"], 2),
    "repair seconds": lambda r: (repair_seconds(r), 0),
    "job seconds": lambda r: (r["seconds"]["total"], 0),
}


def make_table(out: Path, seeds: int) -> str:
    """One row per method: the mean over seeds with the lowest and the highest, and the verdict of each seed."""
    reports = {
        name: [json.loads(report_path(out, seed, name).read_text()) for seed in range(seeds)] for name in METHODS
    }
    original = [100 * report["test"]["accuracy"]["before"] for report in reports["`auto`"]]
    lines = [
        f"| method | {' | '.join(COLUMNS)} | verdicts | largest McNemar p | without the per-class gate |",
        "|---" * (len(COLUMNS) + 4) + "|",
        f"| original | {spread(original, 2)} |" + " |" * (len(COLUMNS) + 2),
    ]
    for name, rows in reports.items():
        cells = [spread([column(row)[0] for row in rows], column(rows[0])[1]) for column in COLUMNS.values()]
        verdicts = ", ".join(row["verdict"] for row in rows)
        p_value = max(row["test"]["mcnemar_p"] for row in rows)
        lines.append(f"| {name} | {' | '.join(cells)} | {verdicts} | {p_value:.1g} | {without_class_gate(rows)} |")
    return "\n".join(lines)


def without_class_gate(reports: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts had the customer not asked that no class gets significantly worse."""
    verdicts = []
    for report in reports:
        states = {gate["state"] for gate in report["gates"] if "worst_class" not in gate["expression"]}
        order = ("fail", "inconclusive", "pass")
        verdicts.append(next(state for state in order if state in states) if report["chosen"] else "fail")
    return ", ".join(verdicts)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range."""
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"), help="reports go here (%(default)s)")
    parser.add_argument("--only-table", action="store_true", help="run nothing, read the reports of an earlier run")
    options = parser.parse_args(argv)
    if not options.only_table:
        run_all(options.out, options.seeds)
    environment = json.loads(report_path(options.out, 0, "`auto`").read_text())["environment"]
    sys.stdout.write(make_table(options.out, options.seeds) + "\n")
    sys.stdout.write(f"\n{options.seeds} seeds, {environment}, {os.cpu_count()} CPUs, {platform.machine()}\n")
    return 0


def run_all(out: Path, seeds: int) -> None:
    """Start the service and run every method on every draw."""
    data = find_data()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state, running_service(Path(state)) as service, service.client() as client:
        for seed in range(seeds):
            run_seed(client, data, out, seed=seed)


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
