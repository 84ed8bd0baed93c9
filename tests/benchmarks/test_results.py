"""From a report to a row, to Parquet, to the page."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.axes import Axes

from benchmarks import document
from benchmarks.comparisons import group
from benchmarks.document import BEGIN, END, every_row, put, section
from benchmarks.methods import METHODS
from benchmarks.plots import draw_bars, draw_cases, draw_ranks, gain_against
from benchmarks.results import SCHEMA, key_of, merge, read_published, right_after, row_of
from benchmarks.run import Run

BEFORE = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], dtype=bool)


def report(right, *, name="network", regression=0.01):
    fixed, broken = (right & ~BEFORE).sum(), (BEFORE & ~right).sum()
    return {
        "test": {
            "accuracy": {"before": BEFORE.mean(), "after": right.mean(), "change": right.mean() - BEFORE.mean()},
            "repair_rate": {"value": fixed / (~BEFORE).sum()},
            "broken_rate": {"value": broken / len(BEFORE)},
        },
        "regression": None if regression is None else {"broken_rate": {"value": regression}},
        "seconds": {"localizing": 1.0, "repairing": 9.0, "total": 14.0},
        "verdict": "pass",
        "chosen": {"name": name} if name else None,
        "localization": {"blocks": [{"name": "blocks.1"}]},
        "environment": {"torch": "2.0"},
    }


def answers(right):
    """Class 1 is true of every input."""
    return {
        "test_before": np.eye(2)[BEFORE.astype(int)],
        "test_after": np.eye(2)[right.astype(int)],
        "test_labels": np.ones(len(BEFORE), dtype=np.int64),
    }


def row(method, num_right, *, case="digits", seed=23, broken=0):
    right = BEFORE.copy()
    right[3:num_right] = True
    right[:broken] = False
    return row_of(Run(case, method, seed), report(right), answers(right))


def test_a_row_holds_what_the_report_says_and_which_inputs_were_right():
    right = np.array([0, 1, 1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    found = row_of(Run("digits", "auto", 23), report(right, name=None, regression=None), answers(right))
    assert (found["change"], found["broken_rate"], found["repair_seconds"]) == (pytest.approx(0.2), 0.1, 10.0)
    assert (found["known_broken_rate"], found["chosen"], found["blamed"]) == (None, "original", "blocks.1")
    assert (right_after(found) == right).all()


def test_rows_survive_parquet_and_newer_ones_replace_older(tmp_path):
    old, new, other = row("auto", 4), row("auto", 6), row("auto", 5, seed=24)
    path = tmp_path / "results.parquet"
    pq.write_table(pa.Table.from_pylist(merge([old, other], [new]), SCHEMA), path)
    assert read_published(path) == [new, other]
    assert read_published(tmp_path / "none.parquet") == []
    assert key_of(new) == Run("digits", "auto", 23).key


def test_rows_of_a_draw_are_of_one_network():
    """The one that more methods have repaired, or else the latest; a draw may have another one."""
    old = [row("auto", 4), row("archrepair", 5)]
    new = of_another_network(row("auto", 6))
    assert merge(old, [of_another_network(row("mode", 6))]) == merge(old, [])
    assert merge(old, [new]) == merge(old, [])
    assert merge([row("auto", 4)], [new]) == [new]
    assert merge(old, [new, of_another_network(row("mode", 6))]) == [new, of_another_network(row("mode", 6))]
    assert len(merge(old, [of_another_network(row("auto", 4, seed=24))])) == 3


def of_another_network(found):
    return found | {"right_before": np.packbits(~BEFORE).tobytes()}


def test_the_page_says_who_is_best_and_where_auto_stands():
    rows = [row("auto", 9), row("archrepair", 4, broken=1), row("network fine-tune", 6)]
    page = "\n".join(section(rows))
    assert "| auto | **+60.00, 0.00** |" in page
    assert "| digits | 1 | auto | +30.00 |" in page
    assert page.count("Has not run.") == 6
    assert "| headline | Which method repairs best, and what does it break? | 3 |" in page


def test_methods_are_compared_on_the_draws_they_share():
    """On the second draw, which the other method has not run on, everything went wrong."""
    rows = [row("auto", 9), row("auto", 3, seed=24, broken=3), row("network fine-tune", 6)]
    page = "\n".join(section(rows))
    assert "| auto | **+60.00, 0.00** |" in page
    assert "| digits | 1 | auto | +30.00 |" in page
    assert "| auto | 2 |" in "\n".join(every_row(rows))


def test_what_the_gates_refuse_is_worth_nothing_to_whoever_asked():
    """The best of two draws was refused, and the other method passed with less."""
    refused = row("auto", 9) | {"verdict": "fail"}
    rows = [refused, row("auto", 5, seed=24), *(row("archrepair", 6, seed=seed) for seed in (23, 24))]
    page = "\n".join(section(rows))
    _, _, below = page.partition("### What passes the gates")
    assert "| auto | 1 of 2, +10.00 |" in below
    assert "| archrepair | **2 of 2, +30.00** |" in below
    assert "Passes of 2 draws of the 1 cases that all of them have run on" in below
    assert "auto 1 (+10.0 points), archrepair 2 (+30.0 points)." in below


def test_the_literature_stands_in_a_section_of_its_own():
    """Where its methods have run on fewer draws, what is compared everywhere keeps all of its own."""
    both = [row(method, 9, seed=seed) for seed in (23, 24) for method in ("auto", "network fine-tune")]
    page = "\n".join(section([*both, row("mode", 6), row("arachne", 4)]))
    everywhere, _, literature = page.partition("### The other methods of the literature")
    assert "| digits | 2 | auto |" in everywhere
    assert "mode" not in everywhere
    assert "| mode | +30.00, 0.00 |" in literature
    assert "| digits | 1 | auto |" in literature


def test_a_method_that_beats_auto_is_named():
    rows = [row("auto", 5, broken=1), row("archrepair", 9), row("network fine-tune", 6)]
    page = "\n".join(section(rows))
    assert "| digits | 1 | archrepair | -50.00 |" in page
    assert "within noise of archrepair |" in page
    of_four_draws = [{**each, "seed": seed} for seed in range(4) for each in rows]
    assert "no: archrepair |" in "\n".join(section(of_four_draws))


def test_the_pictures_show_every_case_and_method(tmp_path):
    rows = [
        row(method, right, case=case)
        for case in ("digits", "jpeg")
        for method, right in (("auto", 9), ("archrepair", 4), ("block search", 6))
    ]
    grouped = group(rows, METHODS)
    draw_cases(grouped, gain_against("broken_rate", scale=100), across="broken, %", target=tmp_path / "cases.svg")
    draw_ranks(grouped, tmp_path / "ranks.svg")
    drawn = (tmp_path / "cases.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("digits", "jpeg", "auto", "archrepair", "block search"))
    assert "<!-- block search -->" in (tmp_path / "ranks.svg").read_text()


def test_a_case_that_has_half_run_is_not_ranked():
    methods = {"auto": 9, "archrepair": 4, "block search": 6}
    rows = [row(method, right, case=case) for case in ("digits", "jpeg") for method, right in methods.items()]
    page = "\n".join(section([*rows, row("auto", 9, case="fog")]))
    assert "Mean ranks of 3 methods over 2 cases (digits, jpeg): auto 1.0, block search 2.0, archrepair 3.0." in page


def test_bars_are_as_long_as_what_was_gained(tmp_path, monkeypatch):
    lengths = []
    barh = Axes.barh

    def noted(panel, y, width, **rest):
        lengths.append(width)
        return barh(panel, y, width, **rest)

    monkeypatch.setattr(Axes, "barh", noted)
    draw_bars(group([row("auto", 9), row("mode", 6, broken=1)], METHODS), tmp_path / "bars.svg")
    assert lengths == [pytest.approx(20), pytest.approx(60)]  # from the lowest bar up
    drawn = (tmp_path / "bars.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("digits", "auto", "mode"))


def test_what_was_generated_is_replaced_and_the_rest_stays():
    page = f"# Results\n\nIntroduction.\n\n{BEGIN}\nolder\n{END}\n\n## By hand\n\nKept.\n"
    once = put(page, ["## The benchmark", "old"])
    assert once == f"# Results\n\nIntroduction.\n\n{BEGIN}\n\n## The benchmark\nold\n{END}\n\n## By hand\n\nKept.\n"
    assert put(once, ["## The benchmark", "new"]) == once.replace("old", "new")
    with pytest.raises(ValueError, match="has no '<!-- a -->' with '<!-- b -->' below it"):
        put(page, [], begin="<!-- a -->", end="<!-- b -->")


def test_the_published_pages_are_what_the_published_table_says():
    rows = read_published()
    generated = document.PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert generated.strip() == "\n".join(section(rows)).strip()
    assert document.EVERY_ROW.read_text() == "\n".join(every_row(rows))
