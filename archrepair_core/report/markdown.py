"""The report as Markdown for the summary of a CI run: verdict, key numbers, gates, the worst classes, what was changed.

Everything that comes from a model or a dataset is escaped: it may neither draw a table, nor link, nor call anybody.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from archrepair_core.report.numbers import CONTROL_NAMES, MISSING, show

MAX_BYTES = 200_000
WORST_CLASSES = 10
MAX_GATES = 64
MAX_TEXT = 1000
MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "not_evaluated": "➖"}
TITLES = {
    "repaired": "Repair {verdict}: repaired",
    "no_improvement": "Repair {verdict}: no improvement, the original stays",
    "evaluated": "Evaluation {verdict}",
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~:@$-])")


def render_markdown(report: Mapping[str, Any]) -> str:
    """GitHub-flavoured Markdown, far below 200 KB for every report."""
    parts = [
        f"## {MARKS[report['verdict']]} {_title(report)}",
        words(report["reason"]),
        _key_numbers(report),
        _controls(report.get("controls") or ()),
        _gates(report["gates"]),
        _classes(report["test"]["per_class"]),
        *(_slices(column) for column in report.get("slices") or ()),
        _corruptions(report),
        _changed(report) if report["outcome"] != "evaluated" else "",
        _data(report["data"]),
        _limits(report["limits"]),
        "The same with figures is in `report.html`, every number in `report.json`.",
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    assert len(text.encode()) <= MAX_BYTES, "every part is bounded"
    return text


def _title(report: Mapping[str, Any]) -> str:
    if not report["gates"]:
        return TITLES[report["outcome"]].partition(" {")[0]
    return TITLES[report["outcome"]].format(verdict=report["verdict"].replace("_", " "))


def words(text: Any) -> str:
    """Text that shows as itself, on one line."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)[:MAX_TEXT]).split())
    return _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int = 1) -> str:
    rule = ["---" if place < numbers_from else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _between(interval: Sequence[float] | None, style: str) -> str:
    return f"{show(interval[0], style)} … {show(interval[1], style)}" if interval else ""


def _key_numbers(report: Mapping[str, Any]) -> str:
    if report["test"]["accuracy"]["before"] is None:
        return _numbers_alone(report)
    rows = []
    for split in ("test", "regression"):
        if report.get(split):
            rows += _split_rows(split, report[split])
    cost = report["cost"]
    rows.append(["latency, after / before", "", show(cost["latency_ratio"], "ratio"), "", ""])
    rows.append(["parameters, after / before", "", show(cost["params_ratio"], "ratio"), "", ""])
    head = ["", "before", "after", "change, points", "95 % interval of the change or rate"]
    return "### Key numbers\n\n" + _table(head, rows)


def _controls(controls: Sequence[Mapping[str, Any]]) -> str:
    """What plainer ways made of it, where any was asked for."""
    if not controls:
        return ""
    rows = []
    for control in controls:
        against, name = control["repair_against_it"], CONTROL_NAMES[control["name"]]
        if against is None:
            rows.append([name, f"not run: {words(control['reason'])}", "", "", "", ""])
            continue
        test = control["test"]
        rows.append([name, words(control["reason"]), show(test["accuracy"]["after"], "percent"),
                     show(against["difference"], "points"), _between(against["difference_ci95"], "points"),
                     show(against["mcnemar_p"], "p")])  # fmt: skip
    head = ["control", "", "accuracy", "repair less control, points", "95 % interval", "McNemar p"]
    return "### Controls, in as many seconds\n\n" + _table(head, rows, numbers_from=2)


def _numbers_alone(report: Mapping[str, Any]) -> str:
    rows = [
        [
            split,
            show(found["n"], "count"),
            show(found["accuracy"]["after"], "percent"),
            _between(found["accuracy"]["after_ci95"], "percent"),
            show(found["ece"]["after"], "number"),
        ]
        for split in ("test", "regression")
        if (found := report.get(split))
    ]
    head = ["", "n", "accuracy", "95 % interval", "calibration error"]
    return "### Key numbers\n\n" + _table(head, rows)


def _split_rows(split: str, found: Mapping[str, Any]) -> list[list[str]]:
    accuracy, broken, repaired = found["accuracy"], found["broken_rate"], found["repair_rate"]
    num_fixed, num_broken = show(found["fixed"], "count"), show(found["broken"], "count")
    return [
        [
            f"{split} accuracy (n = {show(found['n'], 'count')})",
            show(accuracy["before"], "percent"),
            show(accuracy["after"], "percent"),
            show(accuracy["change"], "points"),
            _between(accuracy["change_ci95"], "points"),
        ],
        [f"{split}: fixed, of what failed", "", f"{num_fixed} ({show(repaired['value'], 'percent')})",
         "", _between(repaired["ci95"], "percent")],
        [f"{split}: broken, of all", "", f"{num_broken} ({show(broken['value'], 'percent')})",
         "", _between(broken["ci95"], "percent")],
        [f"{split}: exact McNemar p", "", show(found["mcnemar_p"], "p"), "", ""],
        [f"{split}: calibration error", show(found["ece"]["before"], "number"), show(found["ece"]["after"], "number"),
         "", ""],
    ]  # fmt: skip


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    if not gates:
        return ""
    rows = [
        [f"{MARKS[gate['state']]} {gate['state'].replace('_', ' ')}", words(gate["expression"]), words(gate["reason"])]
        for gate in gates[:MAX_GATES]
    ]
    return "### Gates\n\n" + _table(["", "gate", "why"], rows, numbers_from=3)


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    if "fixed" not in rows[0]:
        return _classes_alone(rows)
    worst = sorted(rows, key=lambda row: row["after"] - row["before"])[:WORST_CLASSES]
    shown = [
        [str(row["label"]), show(row["n"], "count"), show(row["before"], "percent"), show(row["after"], "percent"),
         show(row["after"] - row["before"], "points"), show(row["fixed"], "count"), show(row["broken"], "count"),
         show(row["p_holm"], "p")]
        for row in worst
    ]  # fmt: skip
    head = ["class", "n", "before", "after", "change, points", "fixed", "broken", "p of having got worse"]
    title = "### Classes" if len(worst) == len(rows) else f"### Classes, the worst {len(worst)} of {len(rows)}"
    return f"{title}\n\n{_table(head, shown)}"


def _classes_alone(rows: Sequence[Mapping[str, Any]]) -> str:
    lowest = sorted(rows, key=lambda row: row["after"])[:WORST_CLASSES]
    shown = [
        [str(row["label"]), show(row["n"], "count"), show(row["after"], "percent"),
         _between(row["after_ci95"], "percent")]
        for row in lowest
    ]  # fmt: skip
    title = "### Classes" if len(lowest) == len(rows) else f"### Classes, the lowest {len(lowest)} of {len(rows)}"
    return f"{title}\n\n{_table(['class', 'n', 'accuracy', '95 % interval'], shown)}"


def _slices(column: Mapping[str, Any]) -> str:
    rows = column["slices"]
    compared = any(row["change"] is not None for row in rows)
    lowest = sorted(rows, key=lambda row: row["change" if compared else "after"])[:WORST_CLASSES]
    shown = [
        [words(MISSING if row["value"] is None else row["value"]), show(row["n"], "count"),
         *([show(row["before"], "percent")] if compared else []), show(row["after"], "percent"),
         _between(row["after_ci95"], "percent"), show(row["p_below_rest"], "p"),
         *([show(row["p_worse"], "p")] if compared else [])]
        for row in lowest
    ]  # fmt: skip
    of_all = f", the lowest {len(lowest)} of {len(rows)}" if len(lowest) < len(rows) else ""
    head = ["value", "n", *(["before", "after"] if compared else ["accuracy"]), "95 % interval",
            "p of being below the rest", *(["p of having got worse"] if compared else [])]  # fmt: skip
    return f"### Slices by {words(column['column'])}{of_all}\n\n{_table(head, shown)}" if rows else ""


def _corruptions(report: Mapping[str, Any]) -> str:
    found = report.get("corruptions")
    if not found:
        return ""
    compared = found["accuracy"]["before"] is not None
    named = [("mean", found["accuracy"], found["mce"]["value"])]
    named += [(words(row["kind"].replace("_", " ")), row["mean"], row["error_ratio"]) for row in found["kinds"]]
    shown = [
        [name, *([show(mean["before"], "percent")] if compared else []), show(mean["after"], "percent"),
         _between(mean["after_ci95"], "percent"),
         *([show(mean["change"], "points"), show(ratio, "number")] if compared else [])]
        for name, mean, ratio in named
    ]  # fmt: skip
    head = ["", *(["before", "after"] if compared else ["accuracy"]), "95 % interval",
            *(["change, points", "errors after / before"] if compared else [])]  # fmt: skip
    return f"### Corruptions, {show(found['n'], 'count')} inputs\n\n{_table(head, shown)}"


def _changed(report: Mapping[str, Any]) -> str:
    chosen = report["chosen"]
    if chosen is None:
        return "### What was changed\n\nNothing: no candidate was better than the original on the validation data."
    lines = [f"Trained: **{words(chosen['name'])}**, taken at α = {show(chosen['alpha'], 'number')} of the way."]
    for edit in chosen["genotype"]["edits"][:MAX_GATES]:
        edges = [f"{edge['operation']} ({edge['from']} → {edge['to']})" for edge in edit["edges"][:MAX_GATES]]
        lines.append(f"- Block **{words(edit['block'])}**: {words(', '.join(edges))}")
    if report["recognition"]:
        lines.append(f"- Recognised in the inputs: {words(report['recognition']['summary'])}")
    return "### What was changed\n\n" + "\n".join(lines)


def _data(audit: Mapping[str, Any]) -> str:
    """Sizes, what was skipped or stands twice, and what is doubtful."""
    twice = {found["first"]: found for found in audit["duplicates"] if found["second"] is None}
    rows = [
        [words(role), f"{split['n']:,}", str(len(split["skipped"]))]
        + [f"{twice[role][kind]:,}" if role in twice else "" for kind in ("exact", "near")]
        for role, split in audit["splits"].items()
    ]
    table = _table(["set", "inputs", "unreadable, skipped", "twice in it", "nearly twice"], rows)
    doubts = [f"- ⚠️ {words(warning['detail'])}. {words(warning['hint'])}" for warning in audit["warnings"]]
    return "\n\n".join(part for part in ("### Data", table, "\n".join(doubts)) if part)


def _limits(limits: Sequence[str]) -> str:
    return "### Limits of this result\n\n" + "\n".join(f"- {words(limit)}" for limit in limits)
