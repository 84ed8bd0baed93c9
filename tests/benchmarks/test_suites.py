"""The table of the benchmark holds together before hours are spent on it."""

import numpy as np
import pytest

from archrepair_core.spec import LEVELS, RepairSpec
from benchmarks.__main__ import main
from benchmarks.cases import CASES, of_failures
from benchmarks.methods import METHODS, ROWS, method_of
from benchmarks.run import Run, missing_of, spec_of
from benchmarks.suites import SUITES


@pytest.mark.parametrize("row", [*ROWS, "block=layer2.0"])
def test_every_row_is_a_job_the_service_takes(row):
    case = "jpeg"
    spec = RepairSpec.model_validate(spec_of(Run(case, row, seed=3)) | {"datasets": {"repair": "upload:repair"}})
    assert spec.repair.budget_seconds == CASES[case].seconds
    assert spec.seed == 3


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--cases", "fashon"], "no case is called 'fashon'; did you mean 'fashion'"),
        (["--rows", "archrepare"], "no row is called 'archrepare'; did you mean 'archrepair'"),
        (["--rows", "12345"], "benchmarks/methods.py has them"),
    ],
)
def test_what_nothing_is_called_is_refused_in_a_line(asked, says, capsys):
    with pytest.raises(SystemExit):
        main(asked)
    assert says in capsys.readouterr().err


def test_every_method_of_the_service_is_compared():
    compared = {method.spec.get("repair", {}).get("method", "auto") for method in METHODS.values()}
    # `align` is for a repair without labels, which has its own rows.
    assert compared | {"align"} == set(LEVELS)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_names_what_there_is_and_keeps_each_run_by_itself(name):
    runs = SUITES[name].runs()
    assert all(run.case in CASES for run in runs)
    assert all(method_of(run.method) for run in runs)
    assert len({run.report for run in runs}) == len(set(runs)) == len(runs)


def test_one_named_block_is_the_only_one_to_blame():
    assert method_of("block=layer2.0").spec["localization"] == {"include": ["layer2.0"], "top_k": 1}


def test_the_papers_protocol_takes_failures_out_of_the_test_set():
    images = np.arange(10)[:, None, None]
    labels = np.arange(10)
    right = labels % 3 != 0  # 0, 3, 6, 9 fail
    halves = {"repair": (images[:4], labels[:4]), "test": (images[4:], labels[4:]), "replay": (images, labels)}
    sets = of_failures(halves, right, seed=1)
    assert len(sets["repair"][1]) == 2  # half of the failures: some are left to be judged by
    assert not right[sets["repair"][1]].any()
    assert sorted([*sets["repair"][1], *sets["test"][1]]) == list(labels)
    assert (sets["test"][0][:, 0, 0] == sets["test"][1]).all()
    assert sets["replay"] is halves["replay"]


@pytest.mark.parametrize(("turned", "expected"), [(0, ["mode"]), (1, ["mode"]), (40, ["auto", "archrepair", "mode"])])
def test_a_draw_that_was_begun_with_another_network_is_run_anew(turned, expected, monkeypatch, tmp_path):
    """Of 1,000 answers one may have turned by rounding. What is published whole, and what has run here, is left."""
    monkeypatch.setattr("benchmarks.run.RUNS", tmp_path)
    monkeypatch.setattr("benchmarks.run._subject", lambda run, scratch: (None, None))
    here = np.arange(1000) >= turned
    monkeypatch.setattr("benchmarks.run._right_answers", lambda *_args, **_options: here)
    runs = [
        Run("digits", method, seed) for seed in (23, 24) for method in ("auto", "archrepair", "block search", "mode")
    ]
    published = {run.key for run in runs if run.seed == 24 or run.method not in ("mode", "block search")}
    networks = {run.draw: np.ones(1000, dtype=bool) for run in runs}
    has_run = next(run for run in runs if run.method == "block search")
    has_run.report.parent.mkdir(parents=True)
    has_run.report.touch()
    missing = missing_of(runs, published, networks)
    assert [(run.seed, run.method) for run in missing] == [(23, method) for method in expected]
