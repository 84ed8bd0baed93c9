"""Which rows are compared with which: by case and method, on the draws that all of them have run on."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from archrepair_core.statistics import holm
from benchmarks.cases import CASES
from benchmarks.methods import ABLATIONS, COMPARED, LITERATURE, LOCALIZATIONS, METHODS, ONE_BLOCK
from benchmarks.ranks import Comparison, compare, compare_with_all
from benchmarks.results import Row, right_after
from benchmarks.suites import SUITES

OURS = "auto"
SIGNIFICANT = 0.05
# Rows of RQ4 that take something from `auto`.
PARTS_TAKEN = tuple(name for name in ABLATIONS if name.startswith("auto,"))
Grouped = dict[str, dict[str, list[Row]]]


def mean_of(rows: Sequence[Row], name: str) -> float:
    """Over the draws."""
    return statistics.mean(row[name] for row in rows)


def group(
    rows: Iterable[Row], methods: Iterable[str], *, protocol: str = "honest", seconds: float | None = None
) -> Grouped:
    """Rows by case and method, in the order of the tables; `seconds` None are those of each case."""
    found: Grouped = {}
    wanted = list(methods)
    for case in CASES:
        for method in wanted:
            chosen = [
                row
                for row in rows
                if (row["protocol"], row["case"], row["method"]) == (protocol, case, method)
                and row["budget_seconds"] == (seconds or CASES[case].seconds)
            ]
            if chosen:
                found.setdefault(case, {})[method] = sorted(chosen, key=lambda row: row["seed"])
    return found


def same_draws(grouped: Grouped) -> Grouped:
    """Of every case the draws on which each of its methods has run, so that means are of the same inputs; a case
    without such a draw is left out."""
    kept: Grouped = {}
    for case, by_method in grouped.items():
        seeds = set.intersection(*({row["seed"] for row in rows} for rows in by_method.values()))
        if seeds:
            kept[case] = {method: [row for row in rows if row["seed"] in seeds] for method, rows in by_method.items()}
    return kept


def compare_ours(by_method: Mapping[str, Sequence[Row]]) -> dict[str, Comparison]:
    """`auto` with every other method on the same test inputs of all draws."""
    right = {name: np.concatenate([right_after(row) for row in rows]) for name, rows in by_method.items()}
    return compare_with_all(right[OURS], {name: each for name, each in right.items() if name != OURS})


def to_rank(grouped: Grouped) -> tuple[list[str], Grouped]:
    """The methods that are ranked, and the cases on which all of them have run."""
    methods = [method for method in COMPARED if any(method in by for by in grouped.values())]
    return methods, {case: by for case, by in grouped.items() if all(method in by for method in methods)}


@dataclass(frozen=True)
class Duel:
    """On which cases one method is beyond chance ahead of another, by Holm over the cases both have run on."""

    cases: Sequence[str]
    ahead: Sequence[str]
    behind: Sequence[str]


def duel(grouped: Grouped, method: str, other: str) -> Duel:
    """The exact tests of all cases; each method has chosen its block by itself."""
    compared = {
        case: compare(*(np.concatenate([right_after(row) for row in by_method[name]]) for name in (method, other)))
        for case, by_method in grouped.items()
        if method in by_method and other in by_method
    }
    adjusted = dict(zip(compared, holm([found.p for found in compared.values()]), strict=True))
    sure = [case for case in compared if adjusted[case] < SIGNIFICANT]
    return Duel(
        list(compared),
        [case for case in sure if compared[case].difference > 0],
        [case for case in sure if compared[case].difference < 0],
    )


def headline_of(rows: Sequence[Row]) -> Grouped:
    """What is compared everywhere, on the cases of the headline."""
    return {case: by for case, by in group(rows, COMPARED).items() if case in SUITES["headline"].cases}


def literature_of(rows: Sequence[Row]) -> Grouped:
    """All methods on the cases and draws of the literature's; who has not run on all draws of a case is left out."""
    found: Grouped = {}
    for case, by_method in group(rows, METHODS).items():
        seeds = {row["seed"] for method in LITERATURE.keys() & by_method.keys() for row in by_method[method]}
        on_them = {name: [row for row in of if row["seed"] in seeds] for name, of in by_method.items()}
        if len(LITERATURE.keys() & by_method.keys()) > 1:
            found[case] = {name: of for name, of in on_them.items() if len(of) == len(seeds)}
    return found


def blocks_of(rows: Iterable[Row]) -> list[str]:
    """The methods that repair one block by its name."""
    return sorted({row["method"] for row in rows if row["method"].startswith(ONE_BLOCK)})


def blame_of(rows: Sequence[Row]) -> Grouped:
    """Cases on which two localizations have run."""
    grouped = group(rows, [*LOCALIZATIONS, *blocks_of(rows)])
    return same_draws({case: by for case, by in grouped.items() if len(LOCALIZATIONS.keys() & by.keys()) >= 2})


def parts_of(rows: Sequence[Row]) -> Grouped:
    """Cases on which two parts were taken from `auto`."""
    grouped = group(rows, [OURS, *ABLATIONS])
    return same_draws({case: by for case, by in grouped.items() if len(set(PARTS_TAKEN) & by.keys()) >= 2})
