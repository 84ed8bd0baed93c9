"""A hundred repairs with useless labels: is a delivered model ever worse than what the customer had?

ResNet-20 and its JPEG images. Each run draws its own images and spoils the labels of the repair set in one of five
ways; the default gates decide on a test set with true labels what is delivered. Whether that is worse is then counted
on `NUM_TRUTH` images that the run has not seen, so that a lucky test set would show. Each run is a row that is not run
again. `python -m benchmarks.never_worse --runs 100`
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from archrepair_core.repair import repair_model
from archrepair_core.request import RepairRequest
from archrepair_core.spec import RepairSpec
from archrepair_core.statistics import worsening_p
from benchmarks.cifar import NUM_CLASSES, OUT, PREPROCESSING, find_data, load_cifar, order_of_test_images
from benchmarks.zoo import right_answers

NUM_REPAIR, NUM_TEST, NUM_TRUTH = 300, 1000, 4000
Labels = npt.NDArray[np.int64]

SPOILED: dict[str, Callable[[Labels, np.random.Generator], Labels]] = {
    "shuffled": lambda labels, rng: rng.permutation(labels),
    "random": lambda labels, rng: rng.integers(NUM_CLASSES, size=len(labels)),
    "every class renamed": lambda labels, rng: (labels + rng.integers(1, NUM_CLASSES)) % NUM_CLASSES,
    "two classes exchanged": lambda labels, rng: _exchange(labels, *rng.choice(NUM_CLASSES, 2, replace=False)),
    "half of them random": lambda labels, rng: np.where(
        rng.random(len(labels)) < 0.5, rng.integers(NUM_CLASSES, size=len(labels)), labels
    ),
}


def _exchange(labels: Labels, one: int, other: int) -> Labels:
    return np.where(labels == one, other, np.where(labels == other, one, labels))


def run_once(seed: int, *, budget_seconds: float) -> dict[str, Any]:
    """One repair from spoiled labels, and what its outcome answers on images that it never saw."""
    images, labels = load_cifar("test")
    rows = order_of_test_images(1000 + seed)
    repair, test, truth = np.split(rows[: NUM_REPAIR + NUM_TEST + NUM_TRUTH], [NUM_REPAIR, NUM_REPAIR + NUM_TEST])
    how = list(SPOILED)[seed % len(SPOILED)]
    spoiled = SPOILED[how](labels[repair], np.random.default_rng(seed)).astype(np.int64)
    model = find_data() / "resnet20-cifar10.torchscript.pt"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "out").mkdir()
        np.savez(folder / "repair.npz", images=images[repair], labels=spoiled)
        np.savez(folder / "test.npz", images=images[test], labels=labels[test])
        spec = RepairSpec.model_validate(
            {
                "datasets": {"repair": "upload:repair", "test": "upload:test"},
                "preprocessing": PREPROCESSING,
                "seed": seed,
                "repair": {"budget_seconds": budget_seconds},
                "evaluation": {"controls": "none"},
            }
        )
        files = {f"upload:{role}": folder / f"{role}.npz" for role in ("repair", "test")}
        outcome = repair_model(RepairRequest(model, files, spec, folder, folder / "out"), lambda _progress: None)
        delivered = outcome.result["outcome"] == "repaired"
        # These files this benchmark was shipped with or made itself.
        networks = [torch.jit.load(str(path)).eval() for path in (model, *(folder / "out").glob("repaired.*"))]
        answers = [right_answers(network, images[truth], labels[truth]) for network in networks]
        report = json.loads((folder / "out" / "report.json").read_text())
    before, after = answers[0], answers[-1]
    return {
        "seed": seed,
        "how": how,
        "verdict": outcome.verdict,
        "delivered": delivered,
        "chosen": report["chosen"] is not None,
        "test_change": outcome.result["test"]["accuracy"]["change"],
        "truth": [float(before.mean()), float(after.mean())],
        "worse_p": float(worsening_p((after & ~before).sum(), (before & ~after).sum())),
    }


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """By what was done to the labels: how many runs, delivered ones, and those worse on images no run had seen."""
    lines = [
        "| labels | runs | reached the gates | delivered | delivered and worse on unseen images | worse, p < 0.05 |",
        "|---|---|---|---|---|---|",
    ]
    for how in [*SPOILED, "all"]:
        found = [row for row in rows if how in (row["how"], "all")]
        delivered = [row for row in found if row["delivered"]]
        worse = [row for row in delivered if row["truth"][1] < row["truth"][0]]
        sure = sum(row["worse_p"] < 0.05 for row in worse)
        reached = sum(row["chosen"] for row in found)
        lines.append(f"| {how} | {len(found)} | {reached} | {len(delivered)} | {len(worse)} | {sure} |")
    verdicts = Counter(row["verdict"] for row in rows)
    return "\n".join(
        [
            *lines,
            "",
            f"verdicts: {dict(verdicts)}; torch {torch.__version__}, {os.cpu_count()} CPUs, {platform.machine()}",
        ]
    )


def run_missing(runs: int, path: Path, *, budget_seconds: float) -> Iterator[dict[str, Any]]:
    """Every run that `path` does not hold yet."""
    done = {json.loads(line)["seed"] for line in path.read_text().splitlines()} if path.is_file() else set()
    for seed in sorted(set(range(runs)) - done):
        yield run_once(seed, budget_seconds=budget_seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--budget-seconds", type=float, default=8.0)
    options = parser.parse_args(argv)
    path = OUT / "never_worse.jsonl"
    OUT.mkdir(parents=True, exist_ok=True)
    for row in run_missing(options.runs, path, budget_seconds=options.budget_seconds):
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(make_table([json.loads(line) for line in path.read_text().splitlines()]) + "\n")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
