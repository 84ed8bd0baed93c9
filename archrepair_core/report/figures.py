"""The figures of a report, each a function from the report to SVG; an empty string where it has no data for it.

Drawn narrow, so that a telephone shows them at full size and a wide screen two beside each other. Colour never says
anything alone: marks differ in shape, and every figure has a table beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from archrepair_core.report.measured_figures import draw_accuracies, draw_corruptions, draw_mistakes, draw_slices
from archrepair_core.report.numbers import show
from archrepair_core.report.plots import (
    MARKERS,
    MAX_NAME,
    WIDTH,
    Row,
    colour_of,
    curves_figure,
    draw_forest,
    name_rows,
    plain,
    rows_figure,
    short,
)
from archrepair_core.report.svg import COLOURS, SETTINGS, TITLE_MARK, VALUE_MARK, page_svg

Report = Mapping[str, Any]
# Of many classes the ones that fell and rose most; the table beside the figure has them all.
MAX_CLASSES, CLASSES_AT_EACH_END = 20, 10
MAX_BLOCKS = 16
MAX_SHARES = 6
LINES = ("good", "bad", "second", "third", "doubt", "muted")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 2)))


def draw_changes(report: Report) -> str:
    """Accuracy changes of all measured splits with their intervals."""
    rows = [_change_row(report, split) for split in ("test", "regression") if report.get(split)]
    title = "Change of accuracy, percentage points, with 95 % intervals"
    return draw_forest(
        rows, name="changes", title=title, description="One row per measured set; the line is no change."
    )


def _change_row(report: Report, split: str) -> Row:
    accuracy = report[split]["accuracy"]
    pointer = f"/{split}/accuracy/change"
    return Row(split, accuracy["change"], accuracy["change_ci95"], pointer, colour_of(accuracy["change_ci95"]))


def draw_classes(report: Report) -> str:
    """Change per class with intervals, what got worse first."""
    places = sorted(range(len(report["test"]["per_class"])), key=lambda place: _class_change(report, place))
    if len(places) > MAX_CLASSES:
        places = [*places[:CLASSES_AT_EACH_END], *places[-CLASSES_AT_EACH_END:]]
    rows = []
    for place in places:
        row = report["test"]["per_class"][place]
        interval, change = row["change_ci95"], _class_change(report, place)
        pointer = f"/test/per_class/{place}/after-/test/per_class/{place}/before"
        rows.append(Row(f"class {row['label']}", change, interval, pointer, colour_of(interval)))
    title = "Change of accuracy per class, percentage points, worst first"
    many = len(report["test"]["per_class"]) > MAX_CLASSES
    shown = "The ten that fell and the ten that rose most." if many else "All classes."
    return draw_forest(
        rows, name="classes", title=title, description=f"{shown} Whiskers are 95 % intervals, not adjusted."
    )


def _class_change(report: Report, place: int) -> float:
    row = report["test"]["per_class"][place]
    return float(row["after"] - row["before"])


def draw_gates(report: Report) -> str:
    """Every measured gate: observed value and interval against its limit, each row on a scale of its own."""
    measured = [(place, gate) for place, gate in enumerate(report["gates"]) if gate["observed"] is not None]
    if not measured:
        return ""
    with rc_context(SETTINGS):
        figure, axes = rows_figure(len(measured))
        axes.axvspan(0, 1.15, color=COLOURS["shade"], linewidth=0)
        axes.axvline(0, color=COLOURS["ink"], linewidth=1.2)
        for row, (place, gate) in enumerate(measured):
            _draw_gate(axes, row, place, gate)
        axes.set_xlim(-1.15, 1.15)
        axes.set_xticks([-0.58, 0, 0.58], ["refused", "limit", "passed"])
        axes.tick_params(length=0)
        name_rows(axes, [gate["expression"] for _, gate in measured])
        return page_svg(
            figure,
            name="gates",
            title="Gates: what was observed against the limit",
            description="Right of the line a gate passes; an interval across the line is inconclusive. "
            "Each row has a scale of its own.",
        )


def _draw_gate(axes: Axes, row: int, place: int, gate: Mapping[str, Any]) -> None:
    sign = 1 if ">" in gate["expression"] else -1
    distances = [sign * (value - gate["limit"]) for value in (gate["observed"], *(gate["interval"] or ()))]
    scale = max(map(abs, distances)) or 1.0
    observed, *ends = (distance / scale for distance in distances)
    key = {"pass": "good", "fail": "bad"}.get(gate["state"], "doubt")
    if ends:
        axes.plot(ends, [row, row], color=COLOURS[key], linewidth=1.4)
    axes.plot(observed, row, MARKERS[key], color=COLOURS[key], markersize=5.5)
    text = axes.text(1.02, row, show(gate["observed"], "number"), transform=axes.get_yaxis_transform(), va="center")
    text.set_gid(f"{VALUE_MARK}/gates/{place}/observed|number")


def draw_confusions(report: Report) -> str:
    """The confusions that changed most, as bars to either side."""
    rows = report["test"]["confusion_change"]
    if not rows:
        return ""
    with rc_context(SETTINGS):
        figure, axes = rows_figure(len(rows))
        for place, row in enumerate(rows):
            change = row["after"] - row["before"]
            colour = COLOURS["bad" if change > 0 else "good"]
            axes.barh(place, change, color=colour, height=0.6, hatch="///" if change > 0 else None,
                      edgecolor=COLOURS["paper"], linewidth=0)  # fmt: skip
            text = axes.text(1.02, place, show(change, "plus"), transform=axes.get_yaxis_transform(), va="center")
            pointer = f"/test/confusion_change/{place}"
            text.set_gid(f"{VALUE_MARK}{pointer}/after-{pointer}/before|plus")
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
        name_rows(axes, [f"{row['label']} taken for {row['predicted']}" for row in rows])
        axes.set_xlabel("more or fewer of these mistakes")
        return page_svg(
            figure,
            name="confusions",
            title="Confusions that changed most",
            description="Bars to the left: fewer such mistakes after the repair; hatched, to the right: more.",
        )


def draw_suspiciousness(report: Report) -> str:
    """The most suspicious blocks with the spread over resamples; what was repaired is marked."""
    rows = [row for row in report["localization"]["blocks"] if row["score"] is not None][:MAX_BLOCKS]
    if not rows:
        return ""
    chosen = set((report["chosen"] or {}).get("genotype", {}).get("scope", ()))
    with rc_context(SETTINGS):
        figure, axes = rows_figure(len(rows))
        for place, row in enumerate(rows):
            marked = row["name"] in chosen
            axes.barh(place, row["score"], color=COLOURS["bad" if marked else "good"], height=0.6,
                      hatch="///" if marked else None, edgecolor=COLOURS["paper"], linewidth=0)  # fmt: skip
            axes.errorbar(row["score"], place, xerr=row["score_sd"] or 0, color=COLOURS["ink"], linewidth=1, capsize=2)
            text = axes.text(
                1.02, place, show(row["score"], "number"), transform=axes.get_yaxis_transform(), va="center"
            )
            text.set_gid(f"{VALUE_MARK}/localization/blocks/{place}/score|number")
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
        name_rows(axes, [row["name"] for row in rows])
        axes.set_xlabel("suspiciousness")
        return page_svg(
            figure,
            name="suspiciousness",
            title="Suspiciousness of the blocks, most suspicious first",
            description="Error bars are standard deviations over resampled inputs; hatched bars were repaired.",
        )


def draw_drift(report: Report) -> str:
    """How far each layer's statistics are from the healthy ones, in the order of execution."""
    rows = report["localization"]["drift"]
    if len(rows) < 2:
        return ""
    values = [row["divergence"] or 0.0 for row in rows]
    with rc_context(SETTINGS):
        figure, axes = curves_figure()
        axes.plot(range(len(rows)), values, "-", color=COLOURS["good"], linewidth=1.4)
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            (point,) = axes.plot(place, value, "o", color=COLOURS["good"], markersize=3.5)
            point.set_gid(f"{TITLE_MARK}{short(row['layer'])}")
        places = _spread_places(len(rows))
        axes.set_xticks(places, [short(rows[place]["layer"]) for place in places], rotation=35, ha="right")
        axes.set_ylabel("divergence, nats")
        axes.set_ylim(bottom=0)
        return page_svg(
            figure,
            name="drift",
            title="Drift of the statistics by layer",
            description="Divergence of the inputs' statistics from the healthy ones, first layer on the left.",
        )


def _spread_places(count: int, shown: int = 8) -> list[int]:
    step = max(1, -(-count // shown))
    return list(range(0, count, step))


def draw_losses(report: Report) -> str:
    """Mean training loss per epoch of every trial."""
    curves = {trial["name"]: trial["training"]["losses"] for trial in report["trials"]}
    curves = {name: losses for name, losses in curves.items() if len(losses) > 1}
    return _curves(
        dict(list(curves.items())[: len(LINES)]),
        name="losses",
        title="Training loss of the trials",
        labels=("epoch", "mean loss"),
    )


def draw_shares(report: Report) -> list[str]:
    """Per edge of the chosen cell, the shares of the operations while it was searched."""
    chosen = report["chosen"]
    shares = chosen["search"]["shares"] if chosen and chosen["search"] else []
    if len(shares) < 2:
        return []
    kept = {f"{edge['from']} → {edge['to']}" for edit in chosen["genotype"]["edits"] for edge in edit["edges"]}
    figures = []
    for place, edge in enumerate([edge for edge in shares[0] if edge in kept][:MAX_SHARES]):
        last = shares[-1][edge]
        leading = sorted(last, key=lambda operation: -(last[operation] or 0.0))[: len(LINES)]
        curves = {operation: [snapshot[edge][operation] for snapshot in shares] for operation in leading}
        title = f"Shares of the operations, {short(edge)}"
        figures.append(_curves(curves, name=f"shares-{place}", title=title, labels=("snapshot", short(edge))))
    return figures


def _curves(curves: Mapping[str, Sequence[float | None]], *, name: str, title: str, labels: tuple[str, str]) -> str:
    if not curves:
        return ""
    with rc_context(SETTINGS):
        figure, axes = curves_figure(legend_rows=len(curves))
        for (label, values), colour, dashes in zip(curves.items(), LINES, DASHES, strict=False):
            numbers = [float("nan") if value is None else value for value in values]
            axes.plot(range(1, len(values) + 1), numbers, color=COLOURS[colour], linestyle=dashes, label=label)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, [_one_line(label) for label in names], loc="outside lower left", frameon=False)
        description = f"One line per name, over {labels[0]}s; the lines differ in dashes too."
        return page_svg(figure, name=name, title=title, description=description)


def _one_line(label: str) -> str:
    label = plain(label)
    return label if len(label) <= 2 * MAX_NAME else f"{label[: 2 * MAX_NAME]}…"


def draw_reliability(report: Report) -> str:
    """Accuracy over confidence, before and after."""
    bins = (report.get("reliability") or {}).get("test")
    if not bins:
        return ""
    with rc_context(SETTINGS):
        figure, axes = curves_figure(legend_rows=1)
        axes.plot([0, 100], [0, 100], color=COLOURS["muted"], linewidth=0.8)
        for kind, colour, marker in (("before", "bad", "X"), ("after", "good", "o")):
            if bins[kind] is None:
                continue
            points = [(100 * row["confidence"], 100 * row["accuracy"]) for row in bins[kind]]
            axes.plot(*zip(*points, strict=True), color=COLOURS[colour], marker=marker, markersize=4, label=kind,
                      linestyle="--" if kind == "before" else "-")  # fmt: skip
        axes.set_xlabel("mean confidence, %")
        axes.set_ylabel("right, %")
        if bins["before"] is not None:
            figure.legend(loc="outside lower left", frameon=False, ncols=2)
        return page_svg(
            figure,
            name="reliability",
            title="Confidence against accuracy on the test set",
            description="On the diagonal confidence is what it says; below it the model is too sure.",
        )


def draw_cells(report: Report) -> list[str]:
    """Per changed block its cell: nodes, and an arrow per operation."""
    edits = report["chosen"]["genotype"]["edits"] if report["chosen"] else []
    return [_draw_cell(edit, place) for place, edit in enumerate(edits)]


def _draw_cell(edit: Mapping[str, Any], place: int) -> str:
    edges = edit["edges"]
    inner = sorted({edge["to"] for edge in edges} - {"output"}, key=int)
    nodes = ["input", *inner, "output"]
    across = {node: place / (len(nodes) - 1) for place, node in enumerate(nodes)}
    # Short arrows lie below long ones, each at a height of its own, so that no two names meet.
    ordered = sorted(edges, key=lambda edge: across[edge["to"]] - across[edge["from"]])
    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, 0.75 + 0.36 * len(edges)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        for level, edge in enumerate(ordered, start=1):
            _draw_edge(axes, across[edge["from"]], across[edge["to"]], level, edge["operation"])
        for node in nodes:
            axes.text(across[node], 0, node, ha="center", va="center", zorder=3,
                      bbox={"boxstyle": "round,pad=0.4", "fc": COLOURS["shade"], "ec": COLOURS["good"]})  # fmt: skip
        axes.set_xlim(-0.12, 1.12)
        axes.set_ylim(-0.6, len(edges) + 0.8)
        listed = plain(", ".join(f"{edge['operation']} from {edge['from']} to {edge['to']}" for edge in edges))
        title = f"The cell in the place of {short(edit['block'])}"
        return page_svg(
            figure, name=f"cell-{place}", title=title, description=f"Every node sums what comes in: {listed}"
        )


def _draw_edge(axes: Axes, start: float, end: float, level: int, operation: str) -> None:
    kept = operation == "original"
    colour, dashes = COLOURS["muted" if kept else "bad"], "--" if kept else "-"
    left, right = start + 0.02, end - 0.02
    axes.plot([left, left, right], [0.3, level, level], color=colour, linestyle=dashes, linewidth=1.3)
    arrow = {"arrowstyle": "-|>", "color": colour, "linestyle": dashes, "shrinkA": 0, "shrinkB": 8}
    axes.annotate("", xy=(right, 0.05), xytext=(right, level), arrowprops=arrow)
    axes.text((left + right) / 2, level + 0.08, short(operation), ha="center", va="bottom", color=COLOURS["ink"])


FIGURES: Mapping[str, Callable[[Report], str | list[str]]] = {
    "changes": draw_changes,
    "gates": draw_gates,
    "classes": draw_classes,
    "confusions": draw_confusions,
    "suspiciousness": draw_suspiciousness,
    "drift": draw_drift,
    "losses": draw_losses,
    "shares": draw_shares,
    "cells": draw_cells,
    "reliability": draw_reliability,
    "corruptions": draw_corruptions,
    "slices": draw_slices,
}
# What of them an evaluation has, and what takes their place where there is nothing to compare with.
EVALUATED = ("changes", "gates", "classes", "confusions", "reliability", "corruptions", "slices")
ALONE: Mapping[str, Callable[[Report], str]] = {
    "changes": lambda _report: "",
    "classes": draw_accuracies,
    "confusions": draw_mistakes,
}


def draw_figures(report: Report) -> dict[str, Any]:
    """All figures by name that a report of its kind has."""
    names = EVALUATED if report["outcome"] == "evaluated" else tuple(FIGURES)
    alone = ALONE if report["test"]["accuracy"]["before"] is None else {}
    return {name: alone.get(name, FIGURES[name])(report) for name in names}
