"""What the figures of a report are drawn with: rows with names, and estimates with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archrepair_core.report.numbers import show
from archrepair_core.report.svg import COLOURS, SETTINGS, VALUE_MARK, page_svg

WIDTH = 5.2  # inches
ROW = 0.27  # inches per row of a figure with rows
MAX_NAME = 26
MARKERS = {"good": "o", "bad": "X", "muted": "D", "doubt": "s"}


def short(name: str) -> str:
    """A name that fits beside a row, on one line; the end of a path says more than its beginning."""
    name = plain(str(name))
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


def plain(text: str) -> str:
    """The text without line ends and without what XML cannot hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@dataclass(frozen=True)
class Row:
    """One estimate of a forest: its name, where the report has value and interval, and its colour."""

    name: str
    value: float
    interval: Sequence[float]
    pointer: str
    colour: str


def colour_of(interval: Sequence[float]) -> str:
    """What a change with this interval is: good, bad, or muted where it may be either."""
    if interval[0] > 0:
        return "good"
    return "bad" if interval[1] < 0 else "muted"


def draw_forest(rows: Sequence[Row], *, name: str, title: str, description: str, style: str = "points") -> str:
    """Estimates with their intervals, one under the other: changes in `points`, or shares in `percent`."""
    with rc_context(SETTINGS):
        figure, axes = rows_figure(len(rows))
        for place, row in enumerate(rows):
            low, high = (100 * end for end in row.interval)
            colour = COLOURS[row.colour]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.4)
            axes.plot(100 * row.value, place, MARKERS[row.colour], color=colour, markersize=5.5)
            text = axes.text(1.02, place, show(row.value, style), transform=axes.get_yaxis_transform(), va="center")
            text.set_gid(f"{VALUE_MARK}{row.pointer}|{style}")
        if style == "points":
            axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
        name_rows(axes, [row.name for row in rows])
        axes.set_xlabel("percentage points" if style == "points" else "percent")
        return page_svg(figure, name=name, title=title, description=description)


def rows_figure(count: int) -> tuple[Figure, Axes]:
    """A figure of so many rows, the first on top."""
    figure = Figure(figsize=(WIDTH, 0.62 + ROW * count), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write the names beside the rows."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def curves_figure(legend_rows: int = 0) -> tuple[Figure, Axes]:
    """A figure of lines, with room for a legend of so many rows below."""
    figure = Figure(figsize=(WIDTH, 2.6 + 0.18 * legend_rows), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color=COLOURS["line"], linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes
