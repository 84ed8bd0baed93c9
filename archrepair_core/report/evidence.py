"""The evidence: the chosen repair measured on data nothing was chosen on, the gates, and the verdict.

Validation chose; the test set is looked at once, here, and whatever it says is final: a repair it refuses is not
replaced by the next best, because that would be selecting on the test set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archrepair_core.answers import MEASURED_ROLES, Answers, measure_all
from archrepair_core.blocks import describe_layer
from archrepair_core.case import BATCH_SIZE, Case
from archrepair_core.cost import count_macs, latency_ratio
from archrepair_core.evaluate import predict
from archrepair_core.gates import GateResult, evaluate_gates, verdict_of
from archrepair_core.interface import round_
from archrepair_core.robustness import OnShare
from archrepair_core.search.search import count_parameters
from archrepair_core.search.trials import Trial


@dataclass(frozen=True)
class Evidence:
    """What was measured on held-out data: `measured` holds `test`, maybe `regression`, `corruptions` and `slices`.

    `chosen` is None when validation preferred the original, and in an evaluation.
    """

    chosen: Trial | None
    answers: Answers
    measured: Mapping[str, Any]
    cost: Mapping[str, float]
    cells: tuple[Mapping[str, Any], ...]
    gates: tuple[GateResult, ...]
    verdict: str
    outcome: str
    reason: str
    controls: Sequence[Mapping[str, Any]] = ()


def gather_evidence(case: Case, trials: Sequence[Trial], *, on_share: OnShare | None = None) -> Evidence:
    """Measure the best trial on test and regression data, or the original where no trial beat it on validation."""
    chosen = trials[0] if trials and trials[0].score.helps else None
    answers, after = _answers(case, chosen), chosen.model if chosen else case.host.model
    models = {"before": case.host.model, "after": after}
    measured = measure_all(
        models, answers, case.data.preprocessing, case.spec, device=case.host.device, on_share=on_share
    )
    cost = _cost(case, chosen)
    gates = evaluate_gates(case.spec.gates, {**measured, "cost": cost})
    verdict = verdict_of(gates, chosen=chosen is not None)
    outcome, reason = _outcome(chosen, measured["test"], gates, verdict=verdict)
    return Evidence(chosen, answers, measured, cost, _cells(case, chosen), gates, verdict, outcome, reason)


def _answers(case: Case, chosen: Trial | None) -> Answers:
    present = case.data.splits.present()
    images = {role: present[role] for role in MEASURED_ROLES if role in present}
    before = {role: case.baseline.logits[role] for role in images}
    if chosen is None:
        return Answers(images, before, before)
    preprocessing, device = case.data.preprocessing, case.host.device
    round_(chosen.model, case.host.interface)
    after = {
        role: predict(chosen.model, part, preprocessing, batch_size=BATCH_SIZE, device=device)
        for role, part in images.items()
    }
    return Answers(images, before, after)


def _cost(case: Case, chosen: Trial | None) -> dict[str, float]:
    if chosen is None:
        return {"latency_ratio": 1.0, "params_ratio": 1.0}
    inputs = case.data.tensors("repair", slice(0, 32)).to(case.host.device)
    return {
        "latency_ratio": latency_ratio(case.host.model, chosen.model, inputs),
        "params_ratio": count_parameters(chosen.model) / count_parameters(case.host.model),
    }


def _cells(case: Case, chosen: Trial | None) -> tuple[dict[str, Any], ...]:
    """What each changed block costs, before and after: multiply-adds of one input and parameters."""
    if chosen is None or not chosen.genotype.edits:
        return ()
    one = case.data.tensors("repair", slice(0, 1)).to(case.host.device)
    macs, rows = count_macs(chosen.model, one), []
    for edit in chosen.genotype.edits:
        # What is no block of the host is a layer of one.
        block = case.host.blocks.get(edit.block) or describe_layer(case.host.model, one, edit.block)
        assert block is not None, "a cell stands where something was"
        module = chosen.model.get_submodule(edit.block)
        # A block that borrows its weights from the host owns only what was added to it.
        kept = block.num_params if block.borrowed and edit.keeps_original else 0
        rows.append(
            {
                "block": edit.block,
                "params": {"before": block.num_params, "after": kept + count_parameters(module)},
                "macs": {"before": block.macs, "after": macs[edit.block]},
            }
        )
    return tuple(rows)


def _outcome(
    chosen: Trial | None, test: Mapping[str, Any], gates: Sequence[GateResult], *, verdict: str
) -> tuple[str, str]:
    if chosen is None:
        return "no_improvement", "no candidate was better than the original on the validation data"
    change = f"test accuracy {test['accuracy']['before']:.4f} → {test['accuracy']['after']:.4f}"
    counts = f"{test['fixed']} fixed, {test['broken']} broken of {test['n']}"
    refused = [f"{gate.expression} ({gate.reason})" for gate in gates if gate.state == verdict]
    if test["accuracy"]["change"] <= 0:
        return "no_improvement", f"the best candidate on validation is not better on test: {change}, {counts}"
    if verdict == "fail":
        return "no_improvement", f"a gate refused the repair: {'; '.join(refused)}; {change}, {counts}"
    doubt = f"; not certain: {'; '.join(refused)}" if verdict == "inconclusive" else ""
    return "repaired", f"{change}, {counts}{doubt}"
