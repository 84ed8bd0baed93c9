"""Runs → one table: `python -m benchmarks.results` merges what has run here into the published Parquet.

A row per run. The bits of which test inputs were right before and after are kept, so that every paired test can be done
again from the table alone, and a run that has a row is not run again.

A network that is trained anew on another machine is another network. Draws of a case may differ in it; the rows of one
draw, which are compared input by input, may not.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cases import CASES
from benchmarks.run import Run, same_network
from benchmarks.suites import SUITES

PUBLISHED = Path("benchmarks/results.parquet")
KEY = ("protocol", "case", "method", "seed", "budget_seconds")  # as Run.key
DRAW = tuple(name for name in KEY if name != "method")
SCHEMA = pa.schema(
    [
        ("protocol", pa.string()),
        ("case", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("budget_seconds", pa.float64()),
        ("fault", pa.string()),
        ("network", pa.string()),
        ("n_test", pa.int64()),
        ("accuracy_before", pa.float64()),
        ("accuracy_after", pa.float64()),
        ("change", pa.float64()),
        ("repair_rate", pa.float64()),
        ("broken_rate", pa.float64()),
        ("known_broken_rate", pa.float64()),
        ("repair_seconds", pa.float64()),
        ("verdict", pa.string()),
        ("chosen", pa.string()),
        ("blamed", pa.string()),
        ("torch", pa.string()),
        ("right_before", pa.binary()),
        ("right_after", pa.binary()),
    ]
)
Row = dict[str, Any]


def row_of(run: Run, report: Mapping[str, Any], answers: Mapping[str, npt.NDArray[Any]]) -> Row:
    """One run as plain values; rates are 0–1, `repair_seconds` those of localizing and repairing.

    `answers` are the logits and labels of predictions.npz. Where nothing was chosen, the original is the answer.
    """
    case, test, regression = CASES[run.case], report["test"], report["regression"]
    labels = answers["test_labels"]
    right = {when: answers[f"test_{when}"].argmax(1) == labels for when in ("before", "after")}
    ranking = (report["localization"] or {}).get("blocks") or [{}]
    return {
        "protocol": run.protocol,
        "case": run.case,
        "method": run.method,
        "seed": run.seed,
        "budget_seconds": run.budget,
        "fault": case.fault,
        "network": case.network,
        "n_test": len(labels),
        "accuracy_before": test["accuracy"]["before"],
        "accuracy_after": test["accuracy"]["after"],
        "change": test["accuracy"]["change"],
        "repair_rate": test["repair_rate"]["value"],
        "broken_rate": test["broken_rate"]["value"],
        "known_broken_rate": regression["broken_rate"]["value"] if regression else None,
        "repair_seconds": report["seconds"]["localizing"] + report["seconds"]["repairing"],
        "verdict": report["verdict"],
        "chosen": report["chosen"]["name"] if report["chosen"] else "original",
        "blamed": ranking[0].get("name", ""),
        "torch": report["environment"]["torch"],
        "right_before": np.packbits(right["before"]).tobytes(),
        "right_after": np.packbits(right["after"]).tobytes(),
    }


def right_before(row: Row) -> npt.NDArray[np.bool_]:
    """Which test inputs the original answered rightly."""
    return _bits(row, "right_before")


def right_after(row: Row) -> npt.NDArray[np.bool_]:
    """Which test inputs were answered rightly after the repair."""
    return _bits(row, "right_after")


def _bits(row: Row, name: str) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(row[name], np.uint8), count=row["n_test"]).astype(bool)


def read_published(path: Path = PUBLISHED) -> list[Row]:
    """Every row there is; none where nothing was published."""
    return pq.read_table(path).to_pylist() if path.is_file() else []


def key_of(row: Row) -> tuple[object, ...]:
    """As `Run.key`."""
    return tuple(row[name] for name in KEY)


def draw_of(row: Row) -> tuple[object, ...]:
    """As `Run.draw`."""
    return tuple(row[name] for name in DRAW)


def merge(published: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """The newer row of each run, in the order of the table's key; of every draw only those of one network."""
    draws = defaultdict(list)
    for row in [*published, *new]:
        draws[draw_of(row)].append(row)
    kept = [row for rows in draws.values() for row in _of_one_network(rows)]
    return sorted(kept, key=lambda row: tuple(map(str, key_of(row))))


def _of_one_network(rows: Sequence[Row]) -> list[Row]:
    """Those of the network that most methods have repaired, the latest of equals; of two of a method the newer."""
    sets = (
        {key_of(other): other for other in rows if same_network(right_before(row), right_before(other))}
        for row in reversed(rows)
    )
    return list(max(sets, key=len).values())


def read_runs() -> list[Row]:
    """What has run here, of every suite."""
    runs = {run for suite in SUITES.values() for run in suite.runs()}
    rows = []
    for run in (run for run in runs if run.report.is_file()):
        with np.load(run.answers) as answers:
            rows.append(row_of(run, json.loads(run.report.read_text()), answers))
    return rows


def main() -> int:
    """Merge and write."""
    published, new = read_published(), read_runs()
    rows = merge(published, new)
    for key in sorted({*map(key_of, [*published, *new])} - {*map(key_of, rows)}, key=str):
        sys.stderr.write(f"left out, of another network than most of its draw: {key}\n")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), PUBLISHED, compression="zstd")
    print(f"{len(rows)} runs in {PUBLISHED}, {PUBLISHED.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
