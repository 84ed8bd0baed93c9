"""The benchmark as pictures: `python -m benchmarks.plots` draws docs/pictures/benchmark-*.png from the Parquet."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.comparisons import (
    OURS,
    Grouped,
    blame_of,
    headline_of,
    literature_of,
    mean_of,
    parts_of,
    same_draws,
    to_rank,
)
from benchmarks.document import BLAME, PARTS
from benchmarks.methods import METHODS
from benchmarks.ranks import compare, pareto_front, rank_methods
from benchmarks.results import Row, read_published, right_after, right_before

PICTURES = Path("docs/pictures")
COLUMNS = 3
# Okabe and Ito's colours, which the colour-blind can tell apart; shapes tell the methods of one colour apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPES = ("o", "s", "^")
STYLE = {name: (COLOURS[place % len(COLOURS)], SHAPES[place // len(COLOURS)]) for place, name in enumerate(METHODS)}
Point = tuple[float, float]
# Points of gain that a picture shows at least.
LEAST_SHOWN = 0.1


def gain_against(axis: str, *, scale: float) -> Callable[[Sequence[Row]], Point]:
    """A method's place: something of its rows across, the gain of accuracy in points up."""
    return lambda rows: (scale * mean_of(rows, axis), round(100 * mean_of(rows, "change"), 6))


def draw_cases(grouped: Grouped, place: Callable[[Sequence[Row]], Point], *, across: str, target: Path) -> None:
    """One picture a case, every method a point, the front of much gained for little of what is across as a line."""
    rows = math.ceil((len(grouped) + 1) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3.6 * COLUMNS, 2.9 * rows), squeeze=False, layout="constrained")
    for panel, (case, by_method) in zip(axes.flat, grouped.items(), strict=False):
        _draw_case(panel, {name: place(each) for name, each in by_method.items()})
        panel.set_title(case, fontsize=10)
        panel.set_xlabel(across, fontsize=8)
        panel.set_ylabel("gain, points", fontsize=8)
    spare = list(axes.flat)[len(grouped) :]
    for panel in spare:
        panel.axis("off")
    present = [name for name in METHODS if any(name in by_method for by_method in grouped.values())]
    marks = [plt.Line2D([], [], color=STYLE[n][0], marker=STYLE[n][1], linestyle="", label=n) for n in present]
    spare[0].legend(handles=marks, loc="center", fontsize=8, frameon=False, ncols=1 if len(present) < 10 else 2)
    figure.savefig(target, dpi=90)
    plt.close(figure)


def _draw_case(panel: Axes, points: Mapping[str, Point]) -> None:
    front = sorted(points[name] for name in pareto_front({name: (-x, y) for name, (x, y) in points.items()}))
    panel.plot(*zip(*front, strict=True), color="#999999", linewidth=1, drawstyle="steps-post", zorder=1)
    for name, point in points.items():
        colour, shape = STYLE[name]
        size = 70 if name == "auto" else 36
        panel.scatter(*point, color=colour, marker=shape, s=size, edgecolors="white", linewidths=0.6, zorder=2)
    panel.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    panel.tick_params(labelsize=8)
    panel.margins(0.12)
    low, high = panel.get_ylim()
    if high - low < LEAST_SHOWN:  # where nobody gained anything, the axis would show the last bits of a float
        panel.set_ylim(low - LEAST_SHOWN, high + LEAST_SHOWN)


def draw_ranks(grouped: Grouped, target: Path) -> None:
    """Mean ranks over the cases that every drawn method has run on, with Nemenyi's critical difference as a bar."""
    methods, grouped = to_rank(grouped)
    accuracy = np.array([[mean_of(by[name], "accuracy_after") for name in methods] for by in grouped.values()])
    ranking = rank_methods(accuracy)
    order = np.argsort(ranking.mean_ranks_M)[::-1]
    figure, panel = plt.subplots(figsize=(7, 0.34 * len(methods) + 1.4), layout="constrained")
    half = ranking.critical_difference / 2
    for height, place in enumerate(order):
        rank = ranking.mean_ranks_M[place]
        panel.plot([rank - half, rank + half], [height, height], color="#999999", linewidth=2)
        panel.scatter(rank, height, color=STYLE[methods[place]][0], zorder=2)
    panel.set_yticks(range(len(methods)), [methods[place] for place in order], fontsize=9)
    panel.set_xlabel(
        f"mean rank over {len(grouped)} cases, 1 is best; bars that do not overlap differ at 5 % (Nemenyi)", fontsize=9
    )
    figure.savefig(target, dpi=90)
    plt.close(figure)


def draw_bars(grouped: Grouped, target: Path) -> None:
    """A picture a case: what each row gains, with its 95 % interval over the test inputs of all its draws."""
    size = (5.2 * len(grouped), 0.26 * max(map(len, grouped.values())) + 0.9)
    figure, axes = plt.subplots(1, len(grouped), figsize=size, squeeze=False, layout="constrained")
    for panel, (case, by_method) in zip(axes.flat, grouped.items(), strict=True):
        for height, (name, rows) in enumerate(reversed(by_method.items())):
            after, before = (np.concatenate([bits(row) for row in rows]) for bits in (right_after, right_before))
            gain = compare(after, before)
            low, high = (100 * end for end in gain.interval)
            panel.barh(height, 100 * gain.difference, color="#0072B2" if name == OURS else "#56B4E9", height=0.7)
            panel.plot([low, high], [height, height], color="#333333", linewidth=1.2)
        panel.set_yticks(range(len(by_method)), list(reversed(by_method)), fontsize=8)
        panel.axvline(0, color="#999999", linewidth=0.8)
        panel.set_title(case, fontsize=10)
        panel.set_xlabel("gain, points, with its 95 % interval", fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
    figure.savefig(target, dpi=90)
    plt.close(figure)


def main() -> int:
    """Draw all."""
    rows = read_published()
    grouped = same_draws(headline_of(rows))
    PICTURES.mkdir(exist_ok=True)
    for shown, name in ((grouped, "breakage"), (literature_of(rows), "literature")):
        place = gain_against("broken_rate", scale=100)
        draw_cases(shown, place, across="broken, %", target=PICTURES / f"benchmark-{name}.png")
    draw_cases(
        grouped, gain_against("repair_seconds", scale=1), across="repair, s", target=PICTURES / "benchmark-seconds.png"
    )
    draw_ranks(grouped, PICTURES / "benchmark-ranks.png")
    for picture, asked in ((BLAME, blame_of(rows)), (PARTS, parts_of(rows))):
        if asked:
            draw_bars(asked, PICTURES.parent / picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
