"""A realistic fault: ResNet-20, trained on lossless CIFAR-10, served images from a lossy (JPEG) camera pipeline.

Over HTTP, per seed: 1,000 JPEG images to repair with (validation is cut from them), 5,000 others to test on, 4,000
lossless ones as regression set. Rows: the original, batch-norm only, a 12-epoch fine-tune of the whole network, and
`auto` with the seconds that fine-tune took. Prints a Markdown table and writes every job's report.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
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


def run_seed(client: httpx.Client, data: Path, out: Path, *, seed: int) -> dict[str, Job]:
    """Every method on one draw; `auto` gets the seconds the fine-tune spent on repairing."""
    with tempfile.TemporaryDirectory() as scratch:
        files = draw_sets(data, Path(scratch), seed=seed)
        jobs: dict[str, Job] = {}
        for name, repair in METHODS.items():
            if repair["method"] == "auto":
                repair = repair | {"budget_seconds": repair_seconds(jobs["network fine-tune"])}
            spec = {"datasets": DATASETS, "preprocessing": PREPROCESSING, "repair": repair, "seed": seed}
            keep = out / f"seed-{seed}-{repair['method']}.json"
            jobs[name] = run_job(client, spec, model=data / "resnet20-cifar10.torchscript.pt", files=files, keep=keep)
            sys.stderr.write(f"seed {seed}: {name}: {jobs[name]['verdict']}, {jobs[name]['result']['reason']}\n")
    return jobs


def repair_seconds(job: Job) -> float:
    """Seconds for localizing and repairing; measuring the original and the result costs every method the same."""
    seconds = job["result"]["seconds"]
    return float(seconds["localizing"] + seconds["repairing"])


def make_table(runs: Sequence[dict[str, Job]]) -> str:
    """One row per method, the mean over seeds with the lowest and the highest."""
    lines = [
        "| method | test accuracy % | repair rate % | broken % | regression change | repair seconds | job seconds "
        "| verdicts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    original = [run["`auto`"]["result"]["test"]["accuracy"]["before"] * 100 for run in runs]
    lines.append(f"| original | {spread(original, 2)} | | | | | | |")
    for name in METHODS:
        jobs = [run[name] for run in runs]
        tests = [job["result"]["test"] for job in jobs]
        row = (
            spread([test["accuracy"]["after"] * 100 for test in tests], 2),
            spread([test["repair_rate"]["value"] * 100 for test in tests], 1),
            spread([test["broken_rate"]["value"] * 100 for test in tests], 2),
            spread([job["result"]["regression"]["accuracy"]["change"] * 100 for job in jobs], 2),
            spread([repair_seconds(job) for job in jobs], 0),
            spread([job["result"]["seconds"]["total"] for job in jobs], 0),
            ", ".join(job["verdict"] for job in jobs),
        )
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range."""
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"), help="reports go here (%(default)s)")
    options = parser.parse_args(argv)
    data = find_data()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state, running_service(Path(state)) as service, service.client() as client:
        runs = [run_seed(client, data, options.out, seed=seed) for seed in range(options.seeds)]
    environment = json.loads((options.out / "seed-0-auto.json").read_text())["environment"]
    sys.stdout.write(make_table(runs) + "\n")
    sys.stdout.write(f"\n{options.seeds} seeds, {environment}, {os.cpu_count()} CPUs, {platform.platform()}\n")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
