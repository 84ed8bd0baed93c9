import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archrepair_core.gates import (
    DEFAULT_GATES,
    GATED_SPLITS,
    METRICS,
    OPERATORS,
    Gate,
    GateResult,
    Metric,
    evaluate_gate,
    parse_gate,
    verdict_of,
)


@pytest.mark.parametrize(
    ("expression", "metric", "op", "limit", "relative"),
    [
        ("test.accuracy >= before + 0.005", "test.accuracy", ">=", 0.005, True),
        ("test.accuracy>before-1e-3", "test.accuracy", ">", -0.001, True),
        ("  test.accuracy  >  before  ", "test.accuracy", ">", 0.0, True),
        ("test.broken_rate <= 0.02", "test.broken_rate", "<=", 0.02, False),
        ("cost.latency_ratio < 1.1", "cost.latency_ratio", "<", 1.1, False),
        ("regression.mcnemar_p < .05", "regression.mcnemar_p", "<", 0.05, False),
        ("test.accuracy >= -1", "test.accuracy", ">=", -1.0, False),
        ("test.accuracy >= 1", "test.accuracy", ">=", 1.0, False),
    ],
)
def test_a_gate_is_read_as_it_is_written(expression, metric, op, limit, relative):
    assert parse_gate(expression) == Gate(expression, metric, op, limit, relative)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "METRIC OP LIMIT"),
        ("test.accuracy", "METRIC OP LIMIT"),
        ("accuracy > 0.5", "METRIC OP LIMIT"),
        ("test.accuracy == 0.5", "METRIC OP LIMIT"),
        ("test.accuracy > after", "METRIC OP LIMIT"),
        ("test.accuracy > before * 2", "METRIC OP LIMIT"),
        ("test.accuracy > 0.5 + before", "METRIC OP LIMIT"),
        ("test.accuracy > nan", "METRIC OP LIMIT"),
        ("test.accuracy > inf", "METRIC OP LIMIT"),
        ("test.accuracy > 0.5 and test.accuracy < 0.9", "METRIC OP LIMIT"),
        ("test.accuracy > __import__('os')", "METRIC OP LIMIT"),
        ("tset.accuracy > 0.5", "'tset' is not one of test, regression, corruptions, cost"),
        ("repair.accuracy > 0.5", "'repair' is not one of"),
        ("test.acuracy > 0.5", "'acuracy' is not one of accuracy, repair_rate"),
        ("test.accuracy > 1e999", "too large"),
        ("test.accuracy > before + 1e999", "too large"),
        ("test.accuracy > " + "1" * 300, "316 characters"),
    ],
)
def test_what_is_not_a_gate_says_which_part_is_wrong(expression, said):
    with pytest.raises(ValueError) as caught:
        parse_gate(expression)
    assert said in str(caught.value)


def test_a_long_expression_costs_no_time():
    begun = time.process_time()
    for expression in ("test.accuracy > " + "1" * 100_000 + "x", "test.accuracy > before" + " " * 100_000 + "x"):
        with pytest.raises(ValueError):
            parse_gate(expression)
    assert time.process_time() - begun < 0.1


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_gate_or_a_value_error(text):
    try:
        gate = parse_gate(text)
    except ValueError:
        return
    assert gate.op in OPERATORS


spaces = st.sampled_from(["", " ", "  "])
numbers = st.floats(-1e6, 1e6, allow_nan=False).map(abs)


@settings(deadline=None)
@given(st.sampled_from(GATED_SPLITS), st.sampled_from(sorted(METRICS)), st.sampled_from(sorted(OPERATORS)),
       st.sampled_from([None, "+", "-"]), numbers, spaces)  # fmt: skip
def test_every_gate_that_can_be_written_is_read_back(split, metric, op, sign, number, space):
    relative = sign is not None
    limit = f"before{space}{sign}{space}{number!r}" if relative else repr(number)
    gate = parse_gate(f"{space}{split}.{metric}{space}{op}{space}{limit}{space}")
    assert (gate.metric, gate.op, gate.relative) == (f"{split}.{metric}", op, relative)
    assert gate.limit == (-number if sign == "-" else number)


def decide(expression, metric):
    return evaluate_gate(parse_gate(expression), {"test.accuracy": metric, "test.mcnemar_p": metric})


@pytest.mark.parametrize(
    ("interval", "state"),
    [((0.81, 0.85), "pass"), ((0.79, 0.85), "inconclusive"), ((0.70, 0.79), "fail"), ((0.80, 0.85), "inconclusive")],
)
def test_an_interval_across_the_limit_is_inconclusive(interval, state):
    assert decide("test.accuracy > 0.80", Metric(sum(interval) / 2, interval=interval)).state == state


@pytest.mark.parametrize(("op", "at_limit"), [(">=", "pass"), ("<=", "pass"), (">", "fail"), ("<", "fail")])
def test_a_value_without_an_interval_is_compared_as_it_is(op, at_limit):
    assert decide(f"test.mcnemar_p {op} 0.05", Metric(0.05)).state == at_limit
    assert decide(f"test.mcnemar_p {op} 0.05", Metric(0.04)).state == ("pass" if "<" in op else "fail")


@pytest.mark.parametrize(
    ("expression", "state"),
    [
        ("test.accuracy > before", "pass"),
        ("test.accuracy >= before + 0.02", "inconclusive"),
        ("test.accuracy >= before + 0.05", "fail"),
        ("test.accuracy >= before - 0.01", "pass"),
    ],
)
def test_a_relative_gate_is_decided_on_the_paired_change(expression, state):
    metric = Metric(0.83, before=0.80, interval=(0.70, 0.90), change_interval=(0.01, 0.04))
    result = decide(expression, metric)
    assert result.state == state
    assert result.observed == pytest.approx(0.03)
    assert result.interval == (0.01, 0.04)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (Metric(math.nan, before=0.5), "not measured"),
        (Metric(0.5), "no value before"),
        (Metric(0.5, before=math.nan), "no value before"),
    ],
)
def test_what_was_not_measured_is_not_evaluated(metric, said):
    result = decide("test.accuracy > before", metric)
    assert result.state == "not_evaluated"
    assert said in result.reason
    assert decide("regression.accuracy > before", metric).state == "not_evaluated"


def test_the_reason_carries_the_numbers_and_the_result_is_json():
    result = decide("test.accuracy >= before + 0.02", Metric(0.83, before=0.80, change_interval=(0.01, 0.04)))
    assert result.reason == "test.accuracy changed by +0.0300, 95 % interval [0.01, 0.04]; limit >= 0.02"
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["state"] == "inconclusive"


ends = st.floats(-1, 1)


@settings(deadline=None)
@given(st.sampled_from(sorted(OPERATORS)), st.tuples(ends, ends, ends).map(sorted), ends)
def test_a_gate_passes_when_every_value_in_the_interval_does_and_fails_when_none_does(op, values, limit):
    low, observed, high = values
    gate = Gate("x", "test.accuracy", op, limit, relative=False)
    state = evaluate_gate(gate, {"test.accuracy": Metric(observed, interval=(low, high))}).state
    passing = {OPERATORS[op](value, limit) for value in values}
    assert state == ("inconclusive" if len(passing) == 2 else "pass" if passing == {True} else "fail")


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ([], "not_evaluated"),
        (["not_evaluated"], "not_evaluated"),
        (["pass", "not_evaluated"], "pass"),
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
    ],
)
def test_the_verdict_is_the_worst_gate_that_was_measured(states, verdict):
    assert verdict_of(GateResult("x", state, "") for state in states) == verdict


def test_the_default_gates_parse():
    assert [parse_gate(expression).metric for expression in DEFAULT_GATES] == [
        "test.accuracy", "test.mcnemar_p", "test.broken_rate", "test.worst_class_p", "regression.accuracy",
        "corruptions.worse_p",
    ]  # fmt: skip
