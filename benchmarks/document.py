"""What the benchmark says: `python -m benchmarks.document` writes it into docs/results.md, and docs/results-cases.md
whole, from the Parquet alone."""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.cases import CASES
from benchmarks.comparisons import (
    OURS,
    SIGNIFICANT,
    Grouped,
    blame_of,
    compare_ours,
    duel,
    group,
    headline_of,
    literature_of,
    mean_of,
    parts_of,
    same_draws,
    to_rank,
)
from benchmarks.methods import ABLATIONS, COMPARED, METHODS
from benchmarks.ranks import Comparison, compare, pareto_front, rank_methods
from benchmarks.results import Row, key_of, read_published, right_after, right_before
from benchmarks.suites import SUITES

PAGE, EVERY_ROW = Path("docs/results.md"), Path("docs/results-cases.md")
BEGIN, END = "<!-- from here on written by `python -m benchmarks.document` -->", "<!-- to here -->"
LEVELS = ("weights of some neurons", "weights of one layer", "weights of one block", "network fine-tune")
# The pictures of plots.py.
BLAME, PARTS = "pictures/benchmark-blame.png", "pictures/benchmark-parts.png"
Cell = Callable[[Sequence[Row]], str]


def spread(rows: Sequence[Row], name: str, *, scale: float = 100, digits: int = 2) -> str:
    """Mean, and the range where there are several draws."""
    values = [scale * row[name] for row in rows if row[name] is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


COLUMNS: dict[str, Cell] = {
    "draws": lambda rows: str(len(rows)),
    "accuracy %": lambda rows: spread(rows, "accuracy_after"),
    "change, points": lambda rows: spread(rows, "change"),
    "repair rate %": lambda rows: spread(rows, "repair_rate", digits=1),
    "broken %": lambda rows: spread(rows, "broken_rate"),
    "known images broken %": lambda rows: spread(rows, "known_broken_rate"),
    "repair seconds": lambda rows: spread(rows, "repair_seconds", scale=1, digits=0),
    "verdicts": lambda rows: ", ".join(row["verdict"] for row in rows),
    "chosen": lambda rows: "; ".join(dict.fromkeys(row["chosen"] for row in rows)),
}


def case_table(case: str, by_method: Mapping[str, Sequence[Row]]) -> list[str]:
    """Everything of one case; the highest accuracy in bold."""
    before = next(iter(by_method.values()))
    best = max(by_method, key=lambda method: mean_of(by_method[method], "accuracy_after"))
    title = (
        f"**{case}**: {CASES[case].what}. {CASES[case].network}, {CASES[case].seconds:.0f} s, "
        f"{before[0]['n_test']:,} test inputs, {spread(before, 'accuracy_before')} % right before."
    )
    cells = {
        f"**{method}**" if method == best else method: [cell(rows) for cell in COLUMNS.values()]
        for method, rows in by_method.items()
    }
    return [title, "", *_table("method", list(COLUMNS), cells)]


def gain_and_breakage(rows: Sequence[Row]) -> str:
    """In points and percent."""
    return f"{100 * mean_of(rows, 'change'):+.2f}, {100 * mean_of(rows, 'broken_rate'):.2f}"


def gain_and_seconds(rows: Sequence[Row]) -> str:
    """In points and seconds."""
    return f"{100 * mean_of(rows, 'change'):+.2f}, {mean_of(rows, 'repair_seconds'):.0f} s"


def passed(rows: Sequence[Row]) -> str:
    """On how many draws, and what that is worth in points."""
    return f"{len(_passing(rows))} of {len(rows)}, {100 * gain_that_passed(rows):+.2f}"


def gain_that_passed(rows: Sequence[Row]) -> float:
    """The mean change of accuracy, where it counts for nothing on draws whose verdict is no pass."""
    return sum(row["change"] for row in _passing(rows)) / len(rows)


def _passing(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["verdict"] == "pass"]


def overview(
    grouped: Grouped,
    methods: Sequence[str],
    cell: Cell,
    *,
    worth: Callable[[Sequence[Row]], float] = partial(mean_of, name="change"),
) -> list[str]:
    """Methods and cases, more lines than columns; what is worth most of each case in bold, if it is worth something."""
    ran = [method for method in methods if any(method in by_method for by_method in grouped.values())]
    shown: dict[tuple[str, str], str] = {}
    for case, by_method in grouped.items():
        best = max(worth(rows) for rows in by_method.values())
        for method, rows in by_method.items():
            shown[case, method] = f"**{cell(rows)}**" if worth(rows) == best > 0 else cell(rows)
    if len(grouped) > len(ran):
        return _table("case", ran, {case: [shown.get((case, method), "not run") for method in ran] for case in grouped})
    cells = {method: [shown.get((case, method), "not run") for case in grouped] for method in ran}
    return _table("method", list(grouped), cells)


def _table(what: str, columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [f"| {what} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(found)} |" for name, found in cells.items()), ""]


def statements(grouped: Grouped) -> list[str]:
    """Per case, where `auto` stands: computed, not said."""
    lines = [
        "| case | draws | best accuracy | `auto` less the best, points | 95 % interval | p (Holm) "
        "| on the front of gain and breakage |",
        "|---" * 7 + "|",
    ]
    for case, by_method in grouped.items():
        if OURS not in by_method or len(by_method) < 2:
            continue
        found = compare_ours(by_method)
        best = max(found, key=lambda name: mean_of(by_method[name], "accuracy_after"))
        against = found[best]
        behind = against.difference < 0 and against.p < SIGNIFICANT
        points = {name: (mean_of(rows, "change"), -mean_of(rows, "broken_rate")) for name, rows in by_method.items()}
        front = pareto_front(points)
        beaten_by = [
            name for name in front if points[name][0] >= points[OURS][0] and points[name][1] >= points[OURS][1]
        ]
        low, high = (100 * end for end in against.interval)
        lines.append(
            f"| {case} | {len(by_method[OURS])} | {best if against.difference < 0 else OURS} "
            f"| {100 * against.difference:+.2f}{' **behind**' if behind else ''} | {low:+.2f} to {high:+.2f} "
            f"| {against.p:.2g} | {'yes' if OURS in front else _beaten(by_method, found, beaten_by)} |"
        )
    return [*lines, ""]


def _beaten(by_method: Mapping[str, Sequence[Row]], found: Mapping[str, Comparison], names: Sequence[str]) -> str:
    """Who is ahead of `auto` in gain and breakage, and whether by more than chance in either."""
    kept = {
        name: np.concatenate([right_after(row) | ~right_before(row) for row in by_method[name]])
        for name in (OURS, *names)
    }
    breakage = {name: compare(kept[OURS], kept[name]) for name in names}
    beyond = [name for name in names if found[name].p < SIGNIFICANT or breakage[name].p < SIGNIFICANT]
    return f"no: {', '.join(beyond)}" if beyond else f"within noise of {', '.join(names)}"


def rank_lines(grouped: Grouped) -> list[str]:
    """Mean ranks over the cases on which every ranked method has run."""
    methods, grouped = to_rank(grouped)
    if len(methods) < 3 or len(grouped) < 2:
        return []
    accuracy = np.array([[mean_of(by[method], "accuracy_after") for method in methods] for by in grouped.values()])
    ranking = rank_methods(accuracy)
    order = np.argsort(ranking.mean_ranks_M)
    return [
        f"Mean ranks of {len(methods)} methods over {len(grouped)} cases ({', '.join(grouped)}): "
        + ", ".join(f"{methods[i]} {ranking.mean_ranks_M[i]:.1f}" for i in order)
        + f". Friedman p = {ranking.friedman_p:.2g}; by Nemenyi two of them differ at 5 % where their ranks are "
        f"{ranking.critical_difference:.1f} apart.",
        "",
    ]


def duel_lines(grouped: Grouped, method: str, other: str) -> list[str]:
    """A duel in one sentence; nothing where they never met."""
    found = duel(grouped, method, other)
    if not found.cases:
        return []
    return [
        f"`{method}` against {other}, on {len(found.cases)} cases: significantly better on {len(found.ahead)} "
        f"({_named(found.ahead)}), significantly worse on {len(found.behind)} ({_named(found.behind)}), by Holm over "
        "the cases; on the others no difference shows.",
        "",
    ]


def duel_table(grouped: Grouped, method: str, others: Iterable[str]) -> list[str]:
    """Many duels of one method, a line each."""
    found = {other: duel(grouped, method, other) for other in others}
    columns = ["cases", f"`{method}` significantly better on", "worse on"]
    met = {
        other: [str(len(each.cases)), _named(each.ahead), _named(each.behind)]
        for other, each in found.items()
        if each.cases
    }
    return _table("against", columns, met)


def _named(cases: Iterable[str]) -> str:
    return ", ".join(cases) or "none"


def section(rows: Sequence[Row]) -> list[str]:
    """What is generated of the page of results."""
    grouped = headline_of(rows)
    shared = same_draws(grouped)
    left_out = ", ".join(case for case in grouped if case not in shared) or "none"
    return [
        "## The benchmark",
        "",
        *_introduction(rows),
        "",
        "<!-- not run: it takes hours, and data that are not here -->",
        "```bash",
        "make bench-quick   # digits and Fashion-MNIST: minutes, no data of one's own",
        "make bench         # everything below, resumable; ARCHREPAIR_DATA names the CIFAR-10 files",
        "```",
        "",
        "### Every method on every case",
        "",
        "Change of accuracy in points, and broken in percent, here and in the comparisons below over the draws that "
        f"every method of a case has run on (left out for want of one: {left_out}):",
        "",
        *overview(shared, list(COMPARED), gain_and_breakage),
        "### Where `auto` stands",
        "",
        "Exact McNemar tests over the same test inputs, by Holm over the methods of a case; intervals by 10,000 "
        "bootstrap resamples; the front is of the means, noise and all. Draws of a case share images: where several",
        "are pooled, p-values are somewhat too small.",
        "",
        *statements(shared),
        *rank_lines(shared),
        *duel_lines(shared, "archrepair", "weights of one block"),
        "![Gain of accuracy against what was broken, a picture per case](pictures/benchmark-breakage.png)",
        "",
        "![Gain of accuracy against seconds, a picture per case](pictures/benchmark-seconds.png)",
        "",
        "![Mean ranks with Nemenyi's critical difference](pictures/benchmark-ranks.png)",
        "",
        *_of_what_passes(shared),
        *_literature(rows),
        *_corruptions(rows),
        *_case_by_case(
            "### Own distribution: where there is no fault but a network's errors",
            {
                case: by
                for case, by in group(rows, SUITES["no fault"].methods).items()
                if case in SUITES["no fault"].cases
            },
        ),
        *_case_by_case("### RQ3: what the blame is worth", blame_of(rows), BLAME),
        *_levels(rows),
        *_at_a_glance("### RQ4: what each part is worth", parts_of(rows), [OURS, *ABLATIONS], PARTS),
        *_at_a_glance("### The paper's protocol", same_draws(group(rows, METHODS, protocol="paper")), list(METHODS)),
        *_unfinished(rows),
    ]


def every_row(rows: Sequence[Row]) -> list[str]:
    """The page of all that ran: a table per case, with draws that not every method has."""
    return [
        "# Every row of every case",
        "",
        f"Written by `python -m benchmarks.document`; [how well it works]({PAGE.name}#the-benchmark) says how these",
        "were measured, and what they come to. Means over draws, in brackets the lowest and the highest; the method",
        "of highest accuracy in bold.",
        "",
        *(line for case, by_method in group(rows, METHODS).items() for line in case_table(case, by_method)),
    ]


def _introduction(rows: Sequence[Row]) -> list[str]:
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    versions = ", ".join(sorted({row["torch"] for row in rows}))
    return [
        "Written by `python -m benchmarks.document` from `benchmarks/results.parquet`, where every run has a row with",
        "the bits of which test inputs were right: every test here can be done again without running anything.",
        f"{len(rows)} runs over HTTP through the whole service, seeds {seeds}, torch {versions}, each on one thread of",
        "a shared two-core x86-64 machine. All methods of a case get the same seconds for localizing and repairing.",
        "None sees the test set. *Broken* is the share of all inputs that were right and are wrong now. What the gates",
        "would refuse is compared all the same. A machine that has not trained the networks trains them anew, and they",
        "are others then: draws of a case may differ in their network, the rows of one draw do not.",
        f"[Every row of every case]({EVERY_ROW.name}) is a page of its own.",
    ]


def _of_what_passes(grouped: Grouped) -> list[str]:
    return [
        "### What passes the gates",
        "",
        "The tables above compare what the gates would refuse, too. Here a repair counts where its verdict is a pass: "
        "on how many of the draws it is, and the change of accuracy, which is none on the others:",
        "",
        *overview(grouped, list(COMPARED), passed, worth=gain_that_passed),
        *_passes_of_all(*to_rank(grouped)),
    ]


def _passes_of_all(methods: Sequence[str], grouped: Grouped) -> list[str]:
    """In one sentence; nothing where no case has run with every method."""
    if not grouped:
        return []
    draws = sum(len(by[methods[0]]) for by in grouped.values())
    counted = [
        f"{method} {sum(len(_passing(by[method])) for by in grouped.values())} "
        f"({100 * statistics.mean(gain_that_passed(by[method]) for by in grouped.values()):+.1f} points)"
        for method in methods
    ]
    return [
        f"Passes of {draws} draws of the {len(grouped)} cases that all of them have run on, and the mean over these "
        f"cases: {', '.join(counted)}.",
        "",
    ]


def _literature(rows: Sequence[Row]) -> list[str]:
    grouped = literature_of(rows)
    title = ["### The other methods of the literature", ""]
    if not grouped:
        return [*title, "Have not run.", ""]
    return [
        *title,
        "Beside those above, on one case of each kind; each is one file of the engine, which names its paper and every "
        "deviation from it. Change of accuracy in points, and broken in percent; then `auto` against all of them:",
        "",
        *overview(grouped, list(METHODS), gain_and_breakage),
        *statements(grouped),
        "![Gain of accuracy against what was broken, all methods](pictures/benchmark-literature.png)",
        "",
    ]


def _levels(rows: Sequence[Row]) -> list[str]:
    grouped = same_draws({case: by for case, by in group(rows, LEVELS).items() if len(by) == len(LEVELS)})
    title = ["### Neuron, layer, block, network: the paper's empirical study", ""]
    if not grouped:
        return [*title, "Has not run.", ""]
    return [*title, "Change of accuracy in points, and seconds:", "", *overview(grouped, LEVELS, gain_and_seconds)]


def _corruptions(rows: Sequence[Row]) -> list[str]:
    suite = SUITES["corruptions"]
    grouped = same_draws({case: by for case, by in group(rows, suite.methods).items() if case in suite.cases})
    title = ["### RQ2: against the common corruptions", ""]
    if not grouped:
        return [*title, "Has not run.", ""]
    said = f"{len(grouped)} of {len(suite.cases)} have run; change of accuracy in points, and broken in percent:"
    return [*title, said, "", *overview(grouped, suite.methods, gain_and_breakage)]


def _case_by_case(title: str, grouped: Grouped, picture: str | None = None) -> list[str]:
    """The tables of one question and its picture."""
    tables = [line for case, by_method in grouped.items() for line in case_table(case, by_method)]
    return _with_picture(title, tables, picture)


def _at_a_glance(title: str, grouped: Grouped, methods: Sequence[str], picture: str | None = None) -> list[str]:
    """One table for all cases of a question, and whom `auto` beats beyond chance."""
    said = ["Change of accuracy in points, and broken in percent; then `auto` against the others:", ""]
    tables = [*said, *overview(grouped, methods, gain_and_breakage), *duel_table(grouped, OURS, methods[1:])]
    return _with_picture(title, tables if grouped else [], picture)


def _with_picture(title: str, lines: Sequence[str], picture: str | None) -> list[str]:
    if not lines:
        return [title, "", "Has not run.", ""]
    shown = [f"![{title.removeprefix('### ')}]({picture})", ""] if picture else []
    return [title, "", *shown, *lines]


def _unfinished(rows: Sequence[Row]) -> list[str]:
    """How much of each suite has run."""
    have = {key_of(row) for row in rows}
    lines = ["### What has not run", "", "| suite | question | runs | of |", "|---|---|---|---|"]
    for name, suite in SUITES.items():
        runs = [run.key for run in suite.runs()]
        lines.append(f"| {name} | {suite.question} | {sum(run in have for run in runs)} | {len(runs)} |")
    return [*lines, ""]


def put(page: str, generated: Sequence[str], *, begin: str = BEGIN, end: str = END) -> str:
    """The page with what is generated between two lines of it. Raises ValueError where it does not have them."""
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"{PAGE} has no {begin!r} with {end!r} below it: what is generated stands between them")
    return "\n".join([f"{head}{begin}", "", *generated, f"{end}{tail}"])


def main() -> int:
    """Write both."""
    rows = read_published()
    PAGE.write_text(put(PAGE.read_text(), section(rows)))
    EVERY_ROW.write_text("\n".join(every_row(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
