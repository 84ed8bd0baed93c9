"""Gates: expressions over the metrics of a repair, and the verdict they give. Torch-free.

A gate is `METRIC OP LIMIT`, e.g. `test.accuracy >= before + 0.005` or `test.broken_rate <= 0.02`. It is three-valued:
when the metric's confidence interval straddles the limit, the data cannot tell and the gate is *inconclusive*.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
METRICS = {
    "accuracy": "share of right answers",
    "repair_rate": "failing inputs that are right now",
    "broken_rate": "inputs that were right and are wrong now, as a share of all inputs",
    "mcnemar_p": "exact two-sided McNemar p-value of fixed against broken",
    "worst_class_p": "smallest Holm-adjusted p-value of a class having got worse",
    "worst_slice_p": "smallest Holm-adjusted p-value of a slice having got worse",
    "worst_slice_accuracy": "share of right answers in the slice where it is lowest",
    "worse_p": "one-sided p-value of the mean accuracy under corruptions having got worse",
    "mce": "mean corruption error: errors after, divided by before, averaged over the corruptions",
    "latency_ratio": "seconds per batch after, divided by before",
    "params_ratio": "parameters after, divided by before",
}
GATED_SPLITS = ("test", "regression", "corruptions", "cost")
DEFAULT_GATES = (
    "test.accuracy > before",
    "test.mcnemar_p < 0.05",
    "test.broken_rate <= 0.02",
    "test.worst_class_p >= 0.05",
    "regression.accuracy >= before - 0.005",
    "corruptions.worse_p >= 0.05",
)
# The pattern's time grows with the square of the length, and the gateway runs it on what strangers send.
MAX_GATE_CHARACTERS = 200
_GATE = re.compile(
    r"^\s*(?P<split>\w+)\.(?P<metric>\w+)\s*(?P<op>>=|<=|>|<)\s*"
    r"(?:(?P<before>before)\s*(?:(?P<sign>[+-])\s*(?P<delta>\d*\.?\d+(?:[eE][+-]?\d+)?))?"
    r"|(?P<limit>[+-]?\d*\.?\d+(?:[eE][+-]?\d+)?))\s*$"
)
_NUMBER = r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]{1,2})?"
# For schemas: every gate of this form parses, and but for more blanks and very large exponents there are no others.
GATE_PATTERN = (
    rf"^ ?({'|'.join(GATED_SPLITS)})\.({'|'.join(METRICS)}) ?(>=|<=|>|<) ?"
    rf"(before( ?[+-] ?{_NUMBER})?|[+-]?{_NUMBER}) ?$"
)


@dataclass(frozen=True)
class Gate:
    """One parsed gate. With `relative` the limit is added to the original model's value of the same metric."""

    expression: str
    metric: str
    op: str
    limit: float
    relative: bool


@dataclass(frozen=True)
class Metric:
    """A measured value; `interval` is its 95 % confidence interval, `change_interval` that of after − before."""

    value: float
    before: float | None = None
    interval: tuple[float, float] | None = None
    change_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class GateResult:
    """What a gate said: `state` is pass, fail, inconclusive or not_evaluated, and `reason` says why in words."""

    expression: str
    state: str
    reason: str
    observed: float | None = None
    limit: float | None = None
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return asdict(self)


def parse_gate(expression: str) -> Gate:
    """Parse `METRIC OP LIMIT`. Raises ValueError naming the part that is wrong and what is allowed there."""
    if len(expression) > MAX_GATE_CHARACTERS:
        raise ValueError(f"gate {expression[:40]!r}… has {len(expression)} characters, more than {MAX_GATE_CHARACTERS}")
    match = _GATE.match(expression)
    if match is None:
        raise ValueError(f"gate {expression!r} is not METRIC OP LIMIT, e.g. 'test.accuracy >= before + 0.005'")
    split, metric = match["split"], match["metric"]
    if split not in GATED_SPLITS:
        raise ValueError(f"gate {expression!r}: {split!r} is not one of {', '.join(GATED_SPLITS)}")
    if metric not in METRICS:
        raise ValueError(f"gate {expression!r}: {metric!r} is not one of {', '.join(METRICS)}")
    relative = match["before"] is not None
    delta = float(match["delta"] or 0) * (-1 if match["sign"] == "-" else 1)
    limit = delta if relative else float(match["limit"])
    if not math.isfinite(limit):
        raise ValueError(f"gate {expression!r}: its limit is too large for a number")
    return Gate(expression, f"{split}.{metric}", match["op"], limit, relative)


def evaluate_gates(asked: Literal["auto"] | Sequence[str], measured: Mapping[str, Any]) -> tuple[GateResult, ...]:
    """Every gate asked for, or the default ones, over what was measured: `GATED_SPLITS`, and `slices` of the test set.

    `measured` may be the result of a job as it was stored: JSON loses nothing that a gate looks at. A default gate on
    data that was not given does not apply; one that was asked for is shown as not evaluated.
    """
    metrics = measured_metrics(measured)
    gates = [parse_gate(expression) for expression in (DEFAULT_GATES if asked == "auto" else asked)]
    applying = [gate for gate in gates if asked != "auto" or gate.metric.partition(".")[0] in measured]
    return tuple(evaluate_gate(gate, metrics) for gate in applying)


def measured_metrics(measured: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics that gates may speak of, by their whole name. A rate of nothing is NaN."""
    named = {split: metrics_of(measured[split]) for split in ("test", "regression") if split in measured}
    if measured.get("corruptions"):
        named["corruptions"] = _corruption_metrics(measured["corruptions"])
    if measured.get("slices"):
        named["test"] |= _slice_metrics(measured["slices"])
    named["cost"] = {name: Metric(_number(value)) for name, value in measured.get("cost", {}).items()}
    return {f"{split}.{name}": metric for split, metrics in named.items() for name, metric in metrics.items()}


def _corruption_metrics(found: Mapping[str, Any]) -> dict[str, Metric]:
    """From what `robustness.measure_robustness` says; of one model alone only its accuracy."""
    metrics = {"accuracy": _accuracy_metric(found["accuracy"])}
    if found["worse_p"] is not None:
        metrics["worse_p"] = Metric(found["worse_p"])
    if found["mce"]["value"] is not None:
        metrics["mce"] = Metric(found["mce"]["value"], interval=_interval(found["mce"]["ci95"]))
    return metrics


def _slice_metrics(columns: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """From what `slices.measure_slices` says. The interval is of that slice by itself."""
    slices = [row for column in columns for row in column["slices"]]
    metrics = {}
    if slices:
        lowest = min(slices, key=lambda row: float(row["after"]))
        metrics["worst_slice_accuracy"] = Metric(lowest["after"], interval=_interval(lowest["after_ci95"]))
    if compared := [row["p_worse"] for row in slices if row["p_worse"] is not None]:
        metrics["worst_slice_p"] = Metric(min(compared))
    return metrics


def _accuracy_metric(accuracy: Mapping[str, Any]) -> Metric:
    change = accuracy["change_ci95"]
    return Metric(
        _number(accuracy["after"]),
        before=accuracy["before"],
        interval=_interval(accuracy["after_ci95"]),
        change_interval=_interval(change) if change else None,
    )


def metrics_of(summary: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of one split, from what `evaluate.summarize_split` says of it. p-values have no interval."""
    accuracy = {"accuracy": _accuracy_metric(summary["accuracy"])}
    if "broken" not in summary:
        return accuracy  # of one model, which there is nothing to compare with
    worst = summary["worst_class"]
    return accuracy | {
        "repair_rate": _rate_metric(summary["repair_rate"]),
        "broken_rate": _rate_metric(summary["broken_rate"]),
        "mcnemar_p": Metric(summary["mcnemar_p"]),
        "worst_class_p": Metric(worst["p_holm"] if worst else math.nan),
    }


def _rate_metric(rate: Mapping[str, Any]) -> Metric:
    return Metric(math.nan) if rate["value"] is None else Metric(rate["value"], interval=_interval(rate["ci95"]))


def _interval(ends: Sequence[float]) -> tuple[float, float]:
    return ends[0], ends[1]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def evaluate_gate(gate: Gate, metrics: Mapping[str, Metric]) -> GateResult:
    """Decide one gate. A relative gate is decided on the interval of the *paired* change, which is the narrower one."""
    metric = metrics.get(gate.metric)
    if metric is None or math.isnan(metric.value):
        return GateResult(gate.expression, "not_evaluated", f"{gate.metric} was not measured: its data was not given")
    if gate.relative and (metric.before is None or math.isnan(metric.before)):
        return GateResult(gate.expression, "not_evaluated", f"{gate.metric} has no value before to compare with")
    observed = metric.value - metric.before if gate.relative and metric.before is not None else metric.value
    interval = metric.change_interval if gate.relative else metric.interval
    state = _decide(OPERATORS[gate.op], observed, interval, gate.limit)
    shown = f"{gate.metric} changed by {observed:+.4f}" if gate.relative else f"{gate.metric} is {observed:.4g}"
    within = f", 95 % interval [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    return GateResult(gate.expression, state, f"{shown}{within}; limit {gate.op} {gate.limit:g}", observed, gate.limit,
                      interval)  # fmt: skip


def _decide(
    holds: Callable[[float, float], bool], observed: float, interval: tuple[float, float] | None, limit: float
) -> str:
    if interval is None:
        return "pass" if holds(observed, limit) else "fail"
    ends = [holds(end, limit) for end in interval]
    if all(ends):
        return "pass"
    return "inconclusive" if any(ends) else "fail"


def verdict_of(results: Iterable[GateResult], *, chosen: bool = True) -> str:
    """pass when every measured gate passed, fail when one failed, inconclusive in between, not_evaluated for none.

    Where validation has chosen no repair there is nothing to let pass, whatever the gates say of the original.
    """
    if not chosen:
        return "fail"
    states = {result.state for result in results} - {"not_evaluated"}
    if not states:
        return "not_evaluated"
    for verdict in ("fail", "inconclusive"):
        if verdict in states:
            return verdict
    return "pass"
