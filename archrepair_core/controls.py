"""Controls: what plainer ways would have made of the same data in the same seconds, measured on the same test inputs.

`weights` trains what the repair trained, and nothing but its weights: no search, no new branches, no other start.
`random_block` is the same method told to repair a block drawn at random. Nothing is chosen by them, and no control is
ever delivered; what validation likes less than the original is left, as in a repair.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from archrepair_core.answers import Answers, right_of
from archrepair_core.case import BATCH_SIZE, Case
from archrepair_core.evaluate import predict, summarize_split
from archrepair_core.interface import round_
from archrepair_core.processes import clock
from archrepair_core.repairers import METHODS
from archrepair_core.report.evidence import Evidence
from archrepair_core.scope import NETWORK, Scope
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import race
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.spec import LEVELS, Control, resolve_controls
from archrepair_core.statistics import mcnemar_exact, paired_difference_interval

# `auto` runs controls where each takes at most so long; a shorter run than the repair's would be no control.
UNASKED_SECONDS = 30.0
# What the report says of a control; the classes and confusions of a model nobody gets are of no use.
SUMMARY = ("accuracy", "fixed", "broken", "repair_rate", "broken_rate", "mcnemar_p")
# Methods that repair no block of their own, or nothing but weights: by control, what there is no sense in.
SENSELESS: dict[tuple[str, str], str] = {
    ("random_block", "bn"): "re-estimated statistics belong to the whole network, not to a block",
    ("weights", "weights"): "the repair is such a fine-tune itself",
    **{
        ("random_block", method): "the method chooses no block"
        for method, levels in LEVELS.items()
        if "block" not in levels
    },
}


@dataclass(frozen=True)
class Ran:
    """One control: its trial, None where it was not run or found nothing, and why; the seconds it had and took."""

    name: Control
    trial: Trial | None
    reason: str
    allowed_seconds: float
    seconds: float = 0.0
    was_run: bool = False


def compare_with_controls(
    case: Case, arena: Arena, trials: Sequence[Trial], evidence: Evidence, *, seconds: float, until: float = math.inf
) -> list[dict[str, Any]]:
    """Every control of the spec, each trained for the `seconds` the repair took, and measured; as JSON data.

    None goes on beyond `until` (`clock()` seconds). Without any trial there is nothing to control.
    """
    if not trials:
        return []
    scope = (evidence.chosen or trials[0]).genotype.scope
    # A later attempt may continue what this one leaves of the repair, but controls begin anew.
    arena = replace(arena, checkpoints=None)
    names = resolve_controls(case.spec)
    return [
        _measure(case, evidence.answers, _run(name, case, arena, scope, seconds=seconds, until=until)) for name in names
    ]


def _run(name: Control, case: Case, arena: Arena, scope: Scope, *, seconds: float, until: float) -> Ran:
    reason = _reason_against(name, case, arena, seconds=seconds, until=until)
    prepared = reason or PREPARED[name](case, arena, scope)
    if isinstance(prepared, str):
        return Ran(name, None, prepared, seconds)
    arena.on_progress(f"control {name}: at most {seconds:.0f} s")
    started = clock()
    found = prepared(started + seconds)
    taken = clock() - started
    if arena.is_stopped or not found:
        return Ran(name, None, "the job was stopped" if arena.is_stopped else "it found nothing to try", seconds, taken)
    if not found[0].score.helps:
        return Ran(name, None, "validation preferred the original to it", seconds, taken, was_run=True)
    return Ran(name, found[0], found[0].genotype.name, seconds, taken, was_run=True)


def _reason_against(name: Control, case: Case, arena: Arena, *, seconds: float, until: float) -> str:
    if senseless := SENSELESS.get((name, case.spec.repair.method)):
        return senseless
    if arena.is_stopped:
        return "the job was stopped"
    if case.spec.evaluation.controls == "auto" and seconds > UNASKED_SECONDS:
        return (
            f"the repair took {seconds:.0f} s, and what was not asked for takes at most {UNASKED_SECONDS:.0f} s: "
            f'ask for it by evaluation.controls ["{name}"]'
        )
    if clock() + seconds > until:
        return f"the job has not {seconds:.0f} s left"
    return ""


Runs = Callable[[float], list[Trial]]


def _weights(case: Case, arena: Arena, scope: Scope) -> Runs | str:
    """A plain fine-tune: from the original, without restoring features."""
    if not arena.has_labels:
        return "there are no labels to fine-tune on"
    plain = replace(arena, starts={"original": arena.starts["original"]}, restoration=None)
    # Re-estimated statistics are of layers that hold hardly any weights: beside them, the network is fine-tuned.
    alone = case.spec.repair.level == "layer" or all(name in arena.blocks for name in scope)
    whole = scope if alone else NETWORK
    return lambda deadline: race(plain, [Genotype(whole)], deadline=deadline, epochs=_epochs(case))


def _random_block(case: Case, arena: Arena, scope: Scope) -> Runs | str:
    # A block within a repaired stage is no other one, nor is one around a repaired layer.
    repaired = tuple(f"{name}." for name in scope)
    blocks = [f"{name}." for name, block in arena.blocks.items() if block.level == "block"]
    others = [
        name[:-1]
        for name in blocks
        if not name.startswith(repaired) and not any(part.startswith(name) for part in repaired)
    ]
    if not others:
        return "the model has no other block"
    drawn = others[int(np.random.default_rng(case.spec.seed).integers(len(others)))]
    method, level = METHODS[case.spec.repair.method], "layer" if case.spec.repair.level == "layer" else "block"
    return lambda deadline: method(arena, [drawn], level=level, deadline=deadline, epochs=_epochs(case))


PREPARED: dict[Control, Callable[[Case, Arena, Scope], Runs | str]] = {
    "weights": _weights,
    "random_block": _random_block,
}


def _epochs(case: Case) -> int | None:
    return None if case.spec.repair.epochs == "auto" else case.spec.repair.epochs


def _measure(case: Case, answers: Answers, control: Ran) -> dict[str, Any]:
    told = {
        "name": control.name,
        "ran": control.was_run,
        "reason": control.reason,
        "repaired": control.trial.genotype.to_json()["scope"] if control.trial else [],
        "allowed_seconds": round(control.allowed_seconds, 2),
        "seconds": round(control.seconds, 2),
    }
    if not control.was_run:
        return told | {"test": None, "regression": None, "repair_against_it": None}
    logits = _logits(case, answers, control.trial)
    assert answers.before is not None, "a repair is compared with the original"
    summaries = {
        role: summarize_split(answers.before[role], found, answers.images[role].labels)
        for role, found in logits.items()
    }
    shown = {role: {key: found[key] for key in ("n", *SUMMARY)} for role, found in summaries.items()}
    against = _against(answers, logits["test"])
    return told | {"test": shown["test"], "regression": shown.get("regression"), "repair_against_it": against}


def _logits(case: Case, answers: Answers, trial: Trial | None) -> dict[str, Tensor]:
    if trial is None:
        return dict(answers.before or {})
    round_(trial.model, case.host.interface)
    preprocessing, device = case.data.preprocessing, case.host.device
    return {
        role: predict(trial.model, images, preprocessing, batch_size=BATCH_SIZE, device=device)
        for role, images in answers.images.items()
    }


def _against(answers: Answers, control: Tensor) -> dict[str, Any]:
    """The delivered model against a control on the same test inputs: who alone is right, and is that chance."""
    images = answers.images["test"]
    ours, theirs = right_of(answers.after["test"], images), right_of(control, images)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return {
        "only_repair_right": only_ours,
        "only_control_right": only_theirs,
        "difference": (only_ours - only_theirs) / len(images),
        "difference_ci95": paired_difference_interval(only_ours, only_theirs, len(images)),
        "mcnemar_p": mcnemar_exact(only_ours, only_theirs),
    }
