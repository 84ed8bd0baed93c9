"""Write docs/coverage.md from measured rows: `python -m tests.coverage.document ROWS PAGE`. Nothing else goes in."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.coverage.check import COLUMNS
from tests.coverage.entry import KINDS
from tests.coverage.measure import Row, read_rows
from tests.coverage.registry import ENTRIES

MEANING = {
    "archive": "`torch.jit.script` or `torch.jit.trace` writes the file at all",
    "ingest": "the gate lets it pass; it is repacked, loaded and rebuilt as editable modules",
    "state_dict": "same keys in the same order, every tensor bit for bit",
    "outputs": "answers equal those of the eager model and of the archive, at two batch sizes (relative difference)",
    "verified": "the engine's own proof (`verify_decompiled`) accepts it",
    "blocks": "`find_blocks` finds the blocks and stages of the eager model, by name",
    "export": "scripted or traced again as it was, saved, loaded: same answers, every tensor bit for bit",
    "train_mode": "in train mode, with equal random numbers, answers and batch-norm statistics equal the eager model's",
    "gradients": "every trainable parameter gets the eager model's gradient in train mode",
    "again": "the export is ingested, repaired (a trained cell beside a block), exported, ingested: same answers",
}
HEAD = """\
# What comes back whole

Each model is built with random weights and random batch-norm statistics, written by `torch.jit.script` and by
`torch.jit.trace` (in eval mode), and taken the way of a customer's file. Images are the smallest the architecture
takes (64 × 64 unless the table says otherwise), batches have 1 and 2 items. This page is generated from the rows
measured; no cell is filled in by hand.
"""
NOT_COVERED = """\
## Not covered

* Detection, segmentation, video, optical-flow and quantised models of torchvision; the families of timm not listed.
* Pretrained weights: values are random, so a difference that only special values show would be missed.
* The image size an architecture is trained at, except where the table says so. Sizes change what a trace contains.
* Accelerators: everything ran on the CPU, single-threaded.
* Traces made in train mode or under `torch.no_grad()`, archives written by older releases of torch, frozen archives.
"""
REMAKE = """\
## How to measure it again

`make test-models` measures what the rows in `build/coverage.jsonl` do not have yet of this very code, and writes this
page; it runs for more than an hour. The largest model took {gigabytes:.0f} GB of memory.
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page; of rows for the same archive the last one counts."""
    latest = list({(row.name, row.kind): row for row in rows if row.name in ENTRIES}.values())
    parts = [HEAD, _measured(latest), _columns(latest), _families(latest), _failing(latest)]
    parts += [_excused(latest), _remarks(latest), _models(latest), NOT_COVERED]
    parts.append(REMAKE.format(gigabytes=max(row.peak_megabytes for row in latest) / 1024))
    return "\n".join(part for part in parts if part)


def _measured(rows: list[Row]) -> str:
    expected = sum(len(entry.kinds) for entry in ENTRIES.values())
    dates = sorted({row.measured_at for row in rows})
    codes = Counter(row.code for row in rows)
    states = "one state of the engine's code" if len(codes) == 1 else f"{len(codes)} states of the engine's code"
    listed = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torchvision", "timm"))
    torches = ", ".join(sorted({row.torch_version for row in rows}))
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"Measured: {len(rows)} of {expected} archives, {when}, with torch {torches}, {versions}, at {states} "
        f"(digest and rows: {listed}).\n"
    )


def _columns(rows: list[Row]) -> str:
    lines = ["## By column", "", "Held / asked; a column that builds on one that failed is not asked.", ""]
    groups = _groups(rows)
    header = [f"{group}, {kind}" for group in groups for kind in KINDS]
    lines += _table_head(["column", "what holds", *header])
    for column in COLUMNS:
        counts = [_share(groups[group], kind, column) for group in groups for kind in KINDS]
        lines.append(_line([f"`{column}`", MEANING[column], *counts]))
    whole = [_whole([row for row in groups[group] if row.kind == kind]) for group in groups for kind in KINDS]
    lines.append(_line(["**all of them**", "", *(f"**{count}**" for count in whole)]))
    return "\n".join([*lines, ""])


def _groups(rows: list[Row]) -> dict[str, list[Row]]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[ENTRIES[row.name].family.split()[0]].append(row)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _share(rows: list[Row], kind: str, column: str) -> str:
    cells = [row.cells[column] for row in rows if row.kind == kind and column in row.cells]
    asked = [cell for cell in cells if cell["passed"] is not None]
    return f"{sum(cell['passed'] for cell in asked)}/{len(asked)}"


def _whole(rows: Iterable[Row]) -> str:
    outcomes = [not row.failures() for row in rows]
    return f"{sum(outcomes)}/{len(outcomes)}" if outcomes else "–"


def _families(rows: list[Row]) -> str:
    families: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[ENTRIES[row.name].family].append(row)
    lines = ["## By family", "", "Archives for which every column holds.", ""]
    lines += _table_head(["family", "models", "scripted", "traced"])
    for family, members in sorted(families.items()):
        kinds = [_whole(row for row in members if row.kind == kind) for kind in KINDS]
        lines.append(_line([family, str(len({row.name for row in members})), *kinds]))
    return "\n".join([*lines, ""])


def _failing(rows: list[Row]) -> str:
    failures = [
        f"* `{row.name}` {row.kind}, `{column}`: {_flat(why)}"
        for row in rows
        for column, why in row.failures().items()
        if column not in ENTRIES[row.name].excused(row.kind)
    ]
    return "\n".join(["## Failing", "", *(failures or ["Nothing."]), ""])


def _excused(rows: list[Row]) -> str:
    excused = [
        f"* `{row.name}` {row.kind}, `{column}`: {ENTRIES[row.name].excused(row.kind)[column]}. Measured: {_flat(why)}"
        for row in rows
        for column, why in row.failures().items()
        if column in ENTRIES[row.name].excused(row.kind)
    ]
    return "\n".join(["## Known and accepted", "", *excused, ""]) if excused else ""


def _remarks(rows: list[Row]) -> str:
    """What is in no file of this kind, and so cannot come back."""
    told: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        for remark in _remarks_of(row):
            told[remark].append(f"{row.name} {row.kind}")
    if not told:
        return ""
    lines = ["## Lost before it reaches us", "", "Told by the rows, not counted as failures:", ""]
    for remark, names in sorted(told.items()):
        shown = ", ".join(f"`{name}`" for name in names[:6])
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        lines.append(f"* {remark}: {shown}{more}")
    return "\n".join([*lines, ""])


def _remarks_of(row: Row) -> Iterator[str]:
    for column in ("train_mode", "gradients"):
        cell = row.cells.get(column)
        if cell and cell["passed"] and ";" in cell["detail"] + ";":
            for part in cell["detail"].split("; "):
                if "lost in the trace" in part or "stand still" in part or "not trained" in part:
                    yield part.split(": ")[0] if "not trained" in part else part


def _models(rows: list[Row]) -> str:
    by_name: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_name[row.name][row.kind] = row
    lines = [
        "## By model",
        "",
        "Whole, or the columns that fail. Last: how many blocks / stages are found in the rebuilt model.",
        "",
    ]
    lines += _table_head(["model", "M parameters", "input", "scripted", "traced", "blocks / stages"])
    for name, kinds in sorted(by_name.items(), key=lambda item: (ENTRIES[item[0]].family, item[0])):
        some = next(iter(kinds.values()))
        blocks = {row.cells["blocks"]["detail"] for row in kinds.values() if row.cells.get("blocks", {}).get("passed")}
        shapes = " ".join("×".join(map(str, shape[1:])) or "()" for shape in some.input_shapes)
        cells = [_state(kinds.get(kind)) for kind in KINDS]
        millions = f"{some.num_parameters / 1e6:.1f}" if some.num_parameters >= 1e5 else "<0.1"
        lines.append(_line([f"`{name}`", millions, shapes, *cells, ", ".join(sorted(blocks)) or "–"]))
    return "\n".join([*lines, ""])


def _state(row: Row | None) -> str:
    if row is None:
        return "not measured"
    failures = row.failures()
    return "whole" if not failures else ", ".join(f"`{column}` fails" for column in failures)


def _table_head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), _line(["---"] * len(titles))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _flat(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) <= 300 else f"{text[:297]}…"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(page(list(read_rows(source))))
