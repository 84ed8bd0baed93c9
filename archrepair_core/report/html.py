"""The report as one page that needs nothing else: style, script, figures and pictures are in it.

What comes from models, datasets and their names is escaped by the template; every value carries its place in
report.json (`data-path`, a JSON Pointer), so that a test can compare them all.
"""

import base64
import json
import shlex
from collections.abc import Mapping
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from archrepair_core.report.figures import draw_figures
from archrepair_core.report.numbers import CONTROL_NAMES, MISSING, escaped, show, value_at
from archrepair_core.report.policy import PAGE_POLICY, SCRIPT, STYLE
from archrepair_core.spec import REQUIRED_DATA

MAX_TABLE_ROWS = 1000


def render_html(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page. `pictures` are PNGs: of examples under `GROUP/PLACE`, of the recognition under `recognition`."""
    environment = Environment(
        loader=PackageLoader("archrepair_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    columns = report.get("slices") or []
    return template.render(
        report=report,
        figures={name: _markup(drawn) for name, drawn in draw_figures(report).items()},
        pictures={name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()},
        policy=PAGE_POLICY,
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        spec=json.dumps(report["spec"], indent=1, ensure_ascii=False),
        command=command_of(report),
        escaped=escaped,
        classes=_worst_first(report["test"]["per_class"])[:MAX_TABLE_ROWS],
        columns=columns,
        slices=[_lowest_first(column["slices"]) for column in columns],
        control_names=CONTROL_NAMES,
        corruptions=report.get("corruptions"),
        is_repair=report["outcome"] != "evaluated",
        compared=report["test"]["accuracy"]["before"] is not None,
        labels_of=_labels_of,
        num=partial(_number, report),
        text=partial(_text, report),
        diff=partial(_difference, report),
    )


def _labels_of(splits: Mapping[str, Any]) -> list[str]:
    """Every label of any set, by number; the first of very many."""
    found = {label for split in splits.values() if split["labelled"] for label in split["classes"]}
    return sorted(found, key=int)[:MAX_TABLE_ROWS]


def command_of(report: Mapping[str, Any]) -> str:
    """How to run the job again without the service; the spec is what the report shows."""
    datasets = report["spec"]["datasets"]
    main_role, _ = REQUIRED_DATA[report["spec"]["kind"]]
    given = {role: source for role, source in datasets.items() if isinstance(source, str)}
    options = [f"--dataset {shlex.quote(_file_name(source) + '=PATH')}" for role, source in given.items()
               if role != main_role and source.startswith("upload:")]  # fmt: skip
    return " ".join([f"python -m archrepair_core MODEL {main_role.upper()}_DATA --spec spec.json", *options])


def _file_name(reference: str) -> str:
    return reference.removeprefix("upload:")


def _worst_first(rows: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    return sorted(enumerate(rows), key=lambda item: item[1]["after"] - item[1].get("before", 0.0))


def _lowest_first(rows: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    key = "after" if any(row["change"] is None for row in rows) else "change"
    return sorted(enumerate(rows), key=lambda item: item[1][key])


def _markup(drawn: str | list[str]) -> Any:
    return Markup(drawn) if isinstance(drawn, str) else [Markup(figure) for figure in drawn]


def _number(report: Mapping[str, Any], pointer: str, style: str) -> Markup:
    """The number at `pointer`, with its exact value."""
    value = value_at(report, pointer)
    if value is None:
        return Markup('<span data-path="{}">{}</span>').format(pointer, MISSING)
    return Markup('<data data-path="{}" value="{}">{}</data>').format(pointer, repr(value), show(value, style))


def _difference(report: Mapping[str, Any], pointer: str, minus: str, style: str) -> Markup:
    """The number at `pointer` less the one at `minus`."""
    value = value_at(report, pointer) - value_at(report, minus)
    return Markup('<data data-path="{}" data-minus="{}" value="{}">{}</data>').format(
        pointer, minus, repr(value), show(value, style)
    )


def _text(report: Mapping[str, Any], pointer: str) -> Markup:
    """The words at `pointer`; lists as their items."""
    value = value_at(report, pointer)
    shown = " × ".join(map(str, value)) if isinstance(value, list) else value
    return Markup('<span data-path="{}">{}</span>').format(pointer, MISSING if shown in (None, "") else shown)
