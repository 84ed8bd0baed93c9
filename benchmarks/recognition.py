"""Recognition of what happened to 30 unlabelled images: fifteen corruptions at five severities, more JPEG, and worse.

ResNet-20 and the 4,000 lossless CIFAR-10 images, without the 500 the statistics were chosen on: per seed 1,500 are
known and each case draws 30 of the others, corrupted under seeds of their own. Right is the kind and a parameter within
one severity (one step of the quality ladder). Then the real JPEG field, untouched images, mixtures and faults that are
no corruption. `python -m benchmarks.recognition --seeds 1 2 3`; an earlier run is continued.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archrepair_core.data.corruptions import COMMON_KINDS, SEVERITIES, Corruption, at_severity
from archrepair_core.data.images import ImageRows
from archrepair_core.ingest.model import ingest_model
from archrepair_core.match import recognise
from archrepair_core.recognition import NONE
from archrepair_core.spec import Preprocessing
from benchmarks.cifar import MEAN, STD, find_data, load_cifar

OUT = Path("benchmarks/out")
PREPROCESSING = Preprocessing(mean=list(MEAN), std=list(STD), scale="0-1", color="rgb")
EDGE, NUM_FIELD, NUM_KNOWN = 32, 30, 1500
QUALITIES = (20, 30, 40, 50, 58, 65, 75, 80, 85, 95)
MORE_QUALITIES = (20, 30, 75, 85, 95)  # those the severities leave out
# What counts as one severity of a picture that is turned.
DEGREES_PER_STEP = 10
ANGLES = (-50, -25, -15, -5, 5, 15, 25, 35, 50)
# The rows the statistics and constants of the recognition were chosen on: known ones and field ones.
TUNING_SEED, TUNED = 123, (slice(0, 200), slice(1000, 1300))

Pixels = np.ndarray
Fault = Callable[[Pixels, Sequence[int]], Pixels]


def corruptions() -> dict[str, Corruption]:
    """Every case with a right answer."""
    common = {f"{kind} {s}": at_severity(kind, s, EDGE) for kind in COMMON_KINDS for s in SEVERITIES}
    common |= {f"jpeg quality {q}": Corruption("jpeg_compression", q) for q in MORE_QUALITIES}
    return common | {f"turned by {angle} degrees": Corruption("rotation", angle) for angle in ANGLES}


def others() -> dict[str, Fault | None]:
    """Untouched images, the real field (None: other images), two mixtures, and three faults that are no corruption."""

    def both(first: Corruption, second: Corruption) -> Fault:
        return lambda pixels, seeds: second(first(pixels, seeds), [seed + 1 for seed in seeds])

    blur, noise = at_severity("defocus_blur", 5, EDGE), at_severity("gaussian_noise", 2, EDGE)
    return {
        "untouched": lambda pixels, _seeds: pixels,
        "real JPEG test images": None,
        "mixture: defocus 5, then noise 2": both(blur, noise),
        "mixture: fog 3, then JPEG 50": both(at_severity("fog", 3, EDGE), Corruption("jpeg_compression", 50)),
        "unknown: negative": lambda pixels, _seeds: 255 - pixels,
        "unknown: red and blue swapped": lambda pixels, _seeds: pixels[..., ::-1],
        "unknown: a dark band": lambda pixels, _seeds: np.where(np.arange(EDGE)[:, None, None] < 12, 0, pixels),
    }


def severity_of(kind: str, parameter: float) -> float:
    """The place of a parameter on the ladder of its kind, 1 for the first step, between steps by interpolation."""
    if kind == "rotation":
        return parameter / DEGREES_PER_STEP
    ladder = QUALITIES if kind == "jpeg_compression" else [at_severity(kind, s, EDGE).parameter for s in SEVERITIES]
    order = np.argsort(ladder)
    return float(np.interp(parameter, np.asarray(ladder)[order], 1.0 + order))


def run_seed(seed: int, path: Path) -> Iterator[dict[str, Any]]:
    """Every case that `path` does not hold yet, in an order drawn by the seed so that a part of it is a fair sample."""
    done = {json.loads(line)["case"] for line in path.read_text().splitlines()} if path.is_file() else set()
    data = find_data()
    with tempfile.TemporaryDirectory() as scratch:
        model = ingest_model(data / "resnet20-cifar10.torchscript.pt", Path(scratch)).model.eval()
    images, served = load_cifar("lossless-train4k")[0], load_cifar("test")[0]
    known, pool = _draw_sets(len(images), seed)
    cases, looks = {**corruptions(), **others()}, dict[Any, torch.Tensor]()
    for case in np.random.default_rng(seed).permutation(list(cases)):
        if case in done:
            continue
        drawn = np.random.default_rng((seed, zlib.crc32(case.encode())))
        change, rows = cases[case], drawn.choice(pool, NUM_FIELD, replace=False)
        seeds = drawn.integers(2**32, size=NUM_FIELD).tolist()
        field = served[drawn.choice(len(served), NUM_FIELD)] if change is None else change(images[rows], seeds)
        sets = [ImageRows(pixels, np.arange(len(pixels))) for pixels in (field.astype(np.uint8), images[known])]
        started, alone = time.monotonic(), not looks
        found = recognise(model, *sets, preprocessing=PREPROCESSING, seed=seed, looks=looks).to_json()
        # Only the first case sees the known images for the first time, as a repair does.
        yield {"seed": seed, "case": str(case), "seconds": time.monotonic() - started if alone else None} | found


def _draw_sets(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(TUNING_SEED).permutation(count)
    fresh = np.setdiff1d(order, np.concatenate([order[part] for part in TUNED]))
    drawn = np.random.default_rng(seed).permutation(fresh)
    return drawn[:NUM_KNOWN], drawn[NUM_KNOWN:]


def judge(row: dict[str, Any]) -> tuple[bool, bool]:
    """(right kind, and within one severity of the truth) of a case with a right answer."""
    truth = corruptions()[row["case"]]
    if row["kind"] != truth.kind:
        return False, False
    steps = severity_of(truth.kind, row["parameter"]) - severity_of(truth.kind, truth.parameter)
    return True, abs(steps) <= 1


def make_tables(rows: Sequence[dict[str, Any]]) -> str:
    """What was right, what went wrong, and what was said of the rest."""
    known = [row for row in rows if row["case"] in corruptions()]
    marks = [judge(row) for row in known]
    lines = ["| cases | right kind | and severity within one | fits said | median sureness |", "|---|---|---|---|---|"]
    groups = {"all": set(corruptions())} | {
        kind: {case for case, c in corruptions().items() if c.kind == kind} for kind in (*COMMON_KINDS, "rotation")
    }
    for name, cases in groups.items():
        chosen = [(row, mark) for row, mark in zip(known, marks, strict=True) if row["case"] in cases]
        if chosen:
            kind, near = (sum(mark[i] for _, mark in chosen) for i in (0, 1))
            n, fits = len(chosen), sum(row["fits"] for row, _ in chosen)
            sureness = np.median([row["sureness"] for row, _ in chosen])
            lines.append(f"| {name} | {kind}/{n} ({100 * kind / n:.1f} %) | {near}/{n} | {fits}/{n} | {sureness:.2f} |")
    wrong = Counter(
        f"{row['case']} → {row['kind']} {row['parameter']:.2f}"
        for row, mark in zip(known, marks, strict=True)
        if not mark[1]
    )
    lines += ["", "Wrong: " + ("; ".join(f"{what} ({n})" for what, n in wrong.most_common()) or "none")]
    lines += ["", "| case | nearest | fits | distance | untouched | sureness |", "|---|---|---|---|---|---|"]
    for row in sorted((row for row in rows if row["case"] in others()), key=lambda row: (row["case"], row["seed"])):
        nearest = row["kind"] if row["kind"] == NONE else f"{row['kind']} {row['parameter']:.3g}"
        numbers = f"{row['distance']:.1f} | {row['identity_distance']:.1f} | {row['sureness']:.2f}"
        lines.append(f"| {row['case']} | {nearest} | {'yes' if row['fits'] else 'no'} | {numbers} |")
    seconds = np.median([row["seconds"] for row in rows if row["seconds"]])
    seeds = sorted({row["seed"] for row in rows})
    lines += [
        "",
        f"seeds {seeds}, {len(rows)} cases, a recognition from nothing {seconds:.1f} s, torch {torch.__version__}",
    ]
    return "\n".join([*lines, f"{os.cpu_count()} CPUs, {platform.machine()}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only-table", action="store_true", help="run nothing, read the rows of an earlier run")
    options = parser.parse_args(argv)
    OUT.mkdir(parents=True, exist_ok=True)
    paths = {seed: OUT / f"recognition-seed-{seed}.jsonl" for seed in options.seeds}
    for seed, path in () if options.only_table else paths.items():
        for row in run_seed(seed, path):
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for path in paths.values() if path.is_file() for line in path.read_text().splitlines()]
    print(make_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
