"""Label-free repair: `align` with 30 unlabelled images on ResNet-20 networks with one damaged block.

The block is localized by drift, not told. Each trial writes a row to `--out` and is not run again; the table holds the
share of the lost accuracy that was won back, over the faults that cost at least 10 points.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from archrepair_core.ingest.model import ingest_model
from archrepair_core.repair import repair_model
from archrepair_core.request import RepairRequest
from archrepair_core.runs import find_blocks_
from archrepair_core.spec import RepairSpec
from benchmarks.cifar import PREPROCESSING, find_data, load_cifar
from benchmarks.faults import Fault, damage_, draw_faults
from benchmarks.zoo import accuracy_of

NUM_UNLABELLED, NUM_TEST = 30, 2000
# Rates and steps were tried on faults of other seeds (777 to 779).
FIRST_SEED = 1
MIN_COST = 0.10


def run_fault(network: nn.Module, fault: Fault, *, work: Path, budget_seconds: float) -> dict[str, Any]:
    """Damage, repair from unlabelled images, and measure both on images nothing was chosen on."""
    images, labels = load_cifar("test")
    order = np.random.default_rng(fault.seed).permutation(len(labels))
    field, test = order[:NUM_UNLABELLED], order[NUM_UNLABELLED : NUM_UNLABELLED + NUM_TEST]
    np.savez(work / "repair.npz", images=images[field])
    np.savez(work / "test.npz", images=images[test], labels=labels[test])
    damaged = damage_(copy.deepcopy(network), fault.block, fault.kind, fault.seed)
    torch.jit.save(torch.jit.script(damaged), str(work / "model.pt"))
    spec = {
        "datasets": {"repair": "upload:repair", "test": "upload:test"},
        "preprocessing": PREPROCESSING,
        "localization": {"method": "drift", "top_k": 1},
        "repair": {"method": "align", "budget_seconds": budget_seconds},
        "evaluation": {"controls": "none"},
        "gates": ["test.accuracy > before"],
    }
    files = {f"upload:{name}": work / f"{name}.npz" for name in ("repair", "test")}
    request = RepairRequest(work / "model.pt", files, RepairSpec.model_validate(spec), work, work)
    outcome = repair_model(request, lambda _progress: None)
    accuracy = outcome.result["test"]["accuracy"]
    delivered = outcome.result["outcome"] == "repaired"
    return {
        "block": fault.block,
        "kind": fault.kind,
        "seed": fault.seed,
        "repaired": outcome.result["blocks_repaired"],
        "healthy": accuracy_of(network, images[test], labels[test]),
        "before": accuracy["before"],
        "after": accuracy["after"] if delivered else accuracy["before"],
        "seconds": outcome.result["seconds"]["repairing"],
    }


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """Per kind of fault, stage and over all: how many, how often the right block, and the share won back."""
    costly = [row for row in rows if row["healthy"] - row["before"] >= MIN_COST]
    lines = ["| fault | n | right block | accuracy before → after | won back, mean (lowest) |", "|---|---|---|---|---|"]
    groups = {row["kind"] for row in costly} | {_stage(row) for row in costly}
    for group in [*sorted(groups), "all"]:
        chosen = [row for row in costly if group in (row["kind"], _stage(row), "all")]
        won = [(row["after"] - row["before"]) / (row["healthy"] - row["before"]) for row in chosen]
        hits = sum(row["repaired"] == [row["block"]] for row in chosen)
        before, after = (100 * statistics.mean(row[key] for row in chosen) for key in ("before", "after"))
        share = f"{100 * statistics.mean(won):.0f} % ({100 * min(won):.0f} %)"
        lines.append(f"| {group} | {len(chosen)} | {hits} | {before:.1f} → {after:.1f} | {share} |")
    return "\n".join(lines)


def _stage(row: dict[str, Any]) -> str:
    return str(row["block"]).split(".")[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--budget-seconds", type=float, default=120.0, help="a limit only: 150 steps take less")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/label_free"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        network = ingest_model(find_data() / "resnet20-cifar10.torchscript.pt", Path(scratch)).model.eval()
    blocks = find_blocks_(network, torch.zeros(2, 3, 32, 32))
    names = [block.name for block in blocks if block.level == "block"]
    for fault in draw_faults(names, options.trials, seed=FIRST_SEED):
        path = options.out / f"{fault.seed}.json"
        if not path.exists():
            with tempfile.TemporaryDirectory() as scratch:
                row = run_fault(network, fault, work=Path(scratch), budget_seconds=options.budget_seconds)
            path.write_text(json.dumps(row))
            sys.stderr.write(f"{row}\n")
    rows = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    sys.stdout.write(make_table(rows) + "\n")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
