"""Figures of what was measured beyond the test set as a whole: corruptions, slices, and one model alone.

Cells of the heat maps carry their numbers; their colours differ in lightness too (cividis, and orange against blue).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from archrepair_core.report.numbers import show
from archrepair_core.report.plots import WIDTH, Row, colour_of, draw_forest, name_rows, rows_figure, short
from archrepair_core.report.svg import COLOURS, SETTINGS, VALUE_MARK, page_svg

Report = Mapping[str, Any]
CELL_HEIGHT = 0.26  # inches
WORSE_TO_BETTER = LinearSegmentedColormap.from_list("worse_to_better", ["#c44e00", "#f7f7f7", "#0072b2"])
# Changes below this fade out rather than look large: they are what a handful of inputs makes.
LEAST_CHANGE_SHOWN = 0.02
# Of more, the lowest; the table beside the figure has them all.
MAX_ROWS = 20


def draw_corruptions(report: Report) -> list[str]:
    """Accuracy under each corruption at each severity, and its change where two models were measured."""
    found = report.get("corruptions")
    if not found:
        return []
    after = [row["after"] for row in found["kinds"]]
    figures = [
        _heat_map(
            found,
            after,
            name="corruptions-after",
            title="Accuracy under corruptions, percent",
            pointer="/after/{severity}",
            style="tenths",
            shade=lambda value: colormaps["cividis"](value),
        )
    ]
    if found["kinds"][0]["before"] is not None:
        changes = [[a - b for a, b in zip(row["after"], row["before"], strict=True)] for row in found["kinds"]]
        reach = max(LEAST_CHANGE_SHOWN, *(abs(change) for row in changes for change in row))
        figures.append(
            _heat_map(
                found,
                changes,
                name="corruptions-change",
                title="Change of accuracy under corruptions, percentage points",
                pointer="/after/{severity}-{row}/before/{severity}",
                style="plus_tenths",
                shade=lambda value: WORSE_TO_BETTER(0.5 + 0.5 * value / reach),
            )
        )
    return figures


def _heat_map(
    found: Mapping[str, Any], values: Sequence[Sequence[float]], *, name: str, title: str, pointer: str, style: str,
    shade: Any,
) -> str:  # fmt: skip
    kinds, severities = found["kinds"], found["severities"]
    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, 0.6 + CELL_HEIGHT * len(kinds)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlim(-0.5, len(severities) - 0.5)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        for place, row in enumerate(values):
            for column, value in enumerate(row):
                red, green, blue, _ = shade(value)
                patch = Rectangle((column - 0.48, place - 0.46), 0.96, 0.92, facecolor=(red, green, blue), linewidth=0)
                axes.add_patch(patch)
                light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
                at = f"/corruptions/kinds/{place}"
                axes.text(
                    column, place, show(value, style), ha="center", va="center", color="#000000" if light else "#ffffff"
                ).set_gid(f"{VALUE_MARK}{at}{pointer.format(severity=column, row=at)}|{style}")
        axes.set_xticks(range(len(severities)), [str(severity) for severity in severities])
        axes.set_xlabel("severity")
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
        name_rows(axes, [row["kind"].replace("_", " ") for row in kinds])
        description = "One row per corruption, one column per severity; each cell has its number in it."
        return page_svg(figure, name=name, title=title, description=description)


def draw_slices(report: Report) -> list[str]:
    """Per column its slices: what changed, or of one model the accuracy, the lowest first."""
    return [_draw_column(found, place) for place, found in enumerate(report.get("slices") or ()) if found["slices"]]


def _draw_column(found: Mapping[str, Any], place: int) -> str:
    compared = found["slices"][0]["change"] is not None
    key, interval = ("change", "change_ci95") if compared else ("after", "after_ci95")
    lowest = sorted(range(len(found["slices"])), key=lambda number: found["slices"][number][key])[:MAX_ROWS]
    rows = []
    for number in lowest:
        row = found["slices"][number]
        colour = colour_of(row[interval]) if compared else "good"
        pointer = f"/slices/{place}/slices/{number}/{key}"
        rows.append(Row(slice_name(row["value"]), row[key], row[interval], pointer, colour))
    what = "Change of accuracy" if compared else "Accuracy"
    return draw_forest(
        rows,
        name=f"slices-{place}",
        title=f"{what} by {short(found['column'])}, the lowest first",
        description="One row per value of the column. Whiskers are intervals of each slice by itself.",
        style="points" if compared else "percent",
    )


def slice_name(value: str | None) -> str:
    """The value of a slice as a row is called."""
    return "(none)" if value is None else value


def draw_accuracies(report: Report) -> str:
    """Accuracy of one model per class, the lowest first."""
    classes = report["test"]["per_class"]
    lowest = sorted(range(len(classes)), key=lambda place: classes[place]["after"])[:MAX_ROWS]
    rows = [
        Row(f"class {classes[place]['label']}", classes[place]["after"], classes[place]["after_ci95"],
            f"/test/per_class/{place}/after", "good")
        for place in lowest
    ]  # fmt: skip
    shown = "All classes." if len(rows) == len(classes) else "The classes with the lowest accuracy."
    return draw_forest(
        rows,
        name="classes",
        title="Accuracy per class, the lowest first",
        description=f"{shown} Whiskers are 95 % intervals of each class by itself.",
        style="percent",
    )


def draw_mistakes(report: Report) -> str:
    """The most frequent confusions of one model, as bars."""
    rows = report["test"]["confusions"]
    if not rows:
        return ""
    with rc_context(SETTINGS):
        figure, axes = rows_figure(len(rows))
        for place, row in enumerate(rows):
            axes.barh(place, row["count"], color=COLOURS["bad"], height=0.6, linewidth=0)
            text = axes.text(
                1.02, place, show(row["count"], "count"), transform=axes.get_yaxis_transform(), va="center"
            )
            text.set_gid(f"{VALUE_MARK}/test/confusions/{place}/count|count")
        name_rows(axes, [f"{row['label']} taken for {row['predicted']}" for row in rows])
        axes.set_xlabel("mistakes")
        return page_svg(
            figure,
            name="confusions",
            title="The most frequent confusions",
            description="How many inputs of one class were taken for another.",
        )
