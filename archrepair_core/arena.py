"""The arena of a case: features cached at every cut, and the limits that its gates put on every trial."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from archrepair_core.case import Case
from archrepair_core.data.images import LabelledImages
from archrepair_core.features import DiskBudget
from archrepair_core.gates import DEFAULT_GATES, parse_gate
from archrepair_core.margins import lead_of, margins_of
from archrepair_core.pace import Pace, estimate_settling_seconds
from archrepair_core.prefix_cache import PrefixCache
from archrepair_core.processes import never
from archrepair_core.progress import Tell
from archrepair_core.search.trials import Arena

# What a candidate may break is this share of what would just pass: 200 inputs tell it to half a point only
# (selection.expected_broken).
LIMIT_SHARE = 0.75
# Where so few inputs measure it that hardly any breakage passes, or none, it is this share of the gate's limit.
SMALLEST_SHARE, UNPROVABLE_SHARE = 0.3, 0.8
# Of the field so many times as much breaks as of replayed known images, whose answers the original has learned:
# 1.1 to 2.4 times on ten development repairs, this in the mean (docs/choices.md).
KNOWN_BREAK_LESS = 1.75
NORMAL_975 = 1.96
# Of fewer inputs per class than this a ratio says little; and no class is worth more than its square.
TYPICAL_COUNT, MAX_RATIO = 10, 2.0
# So many margins tell where margins lie.
MAX_POPULATION = 5000
# What works today is watched on so many inputs.
MAX_GUARD = 512


def make_arena(
    case: Case,
    work_dir: Path,
    on_progress: Tell,
    pace: Pace | None = None,
    *,
    stopped: Callable[[], bool] = never,
) -> Arena:
    """What every trial shares; features are computed when a trial first asks for them."""
    spec, host = case.spec.repair, case.host
    splits, logits, guard_share = _with_hard_guard(case)
    cache = PrefixCache(
        model=host.model,
        splits=splits,
        original_logits=logits,
        preprocessing=case.data.preprocessing,
        views=case.views,
        work_dir=work_dir,
        device=host.device,
        budget=DiskBudget(spec.cache_gb * 1e9),
    )
    return Arena(
        host.model,
        {"original": cache},
        host.blocks,
        spec,
        max_broken=allowed_to_break(case),
        max_guard_broken=_allowed(case, "regression.broken_rate") / guard_share,
        max_guard_lost=_allowed(case, "regression.accuracy") / guard_share,
        reference=case.reference,
        settling_seconds=pace.settling_seconds if pace else estimate_settling_seconds(case),
        scoring_seconds=_scoring_seconds(case, splits),
        seed=case.spec.seed,
        on_progress=on_progress,
        precision=pace.precision if pace else "float32",
        checkpoints=pace.checkpoints if pace else None,
        keep_K=_keep(splits, logits),
        field_margins_M=_field_margins(case),
        bold=case.little_works,
        stopped=stopped,
    )


def _scoring_seconds(case: Case, splits: Mapping[str, LabelledImages]) -> float:
    """What running a whole model over validation and guard takes, by the speed of the baseline."""
    asked = sum(len(splits[role]) for role in ("validation", "guard") if role in splits)
    return asked / case.baseline.inputs_per_second


def _keep(splits: Mapping[str, LabelledImages], logits: Mapping[str, Tensor]) -> Tensor | None:
    """By class, from the labelled inputs that show the fault."""
    role = next((role for role in ("repair", "validation") if role in splits and splits[role].labelled), None)
    return None if role is None else endangered_classes(logits[role], torch.as_tensor(splits[role].labels))


def _field_margins(case: Case) -> Tensor | None:
    """Of validation and the repair inputs it was cut from at random: margins of one kind.

    Where validation is replayed training data instead, of the unlabelled field: training data is answered more safely
    than the field, and little of it breaks. Every answer counts as right there, which errs on the side of caution.
    """
    if case.spec.datasets.validation is not None:
        return None
    splits, logits = case.data.splits, case.baseline.logits
    if not splits.repair.labelled:
        return lead_of(logits["repair"])[:MAX_POPULATION] if splits.validation and splits.validation.labelled else None
    parts = [(logits[s.name], s.labels) for s in (splits.validation, splits.repair) if s is not None]
    margins = [margins_of(part, torch.as_tensor(labels)) for part, labels in parts]
    # Where repair shows only failures, validation is replayed known images: among these the failures are no sample.
    return torch.cat(margins)[:MAX_POPULATION] if case.right_share(splits.repair) else None


def allowed_to_break(case: Case) -> float:
    """The share of validation that a candidate may break for the gate on the field to pass."""
    allowed = _allowed(case, "test.broken_rate")
    return allowed / KNOWN_BREAK_LESS if _only_known_validate(case) else allowed


def _only_known_validate(case: Case) -> bool:
    """Whether validation is replayed known images, as the field shows only failures, of which none can break."""
    repair, validation = case.data.splits.repair, case.data.splits.validation
    if case.spec.datasets.validation is not None or validation is None or not repair.labelled:
        return False
    return not case.right_share(repair) and case.right_share(validation) > 0


def endangered_classes(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """How much a repair should keep the right answers of each class [K]; 1 for most.

    A class that the fault has named too often is named less once it is repaired, and loses right answers by that, which
    cost a repair its verdict (docs/choices.md). The weight is the square of how much too often.
    """
    num_classes = logits_NK.shape[1]
    named_K, true_K = (torch.bincount(each, minlength=num_classes).float() for each in (logits_NK.argmax(1), labels_N))
    ratio_K = (named_K + TYPICAL_COUNT) / (true_K + TYPICAL_COUNT)
    return ratio_K.clamp(1.0, MAX_RATIO).square()


def _allowed(case: Case, metric: str) -> float:
    """The share of the split's inputs that a candidate may break, or lose on balance where the gate is on the change
    of accuracy, for the strictest gate on `metric` to pass; infinite without one."""
    expressions = DEFAULT_GATES if case.spec.gates == "auto" else case.spec.gates
    gates = [gate for gate in map(parse_gate, expressions) if gate.metric == metric]
    limits = [-gate.limit if gate.relative else gate.limit for gate in gates if gate.relative or "broken" in metric]
    if not limits:
        return math.inf
    measured_on = case.data.splits.present().get(metric.split(".")[0])
    return LIMIT_SHARE * provable_share(max(0.0, min(limits)), len(measured_on) if measured_on else 0)


def provable_share(limit: float, num_inputs: int) -> float:
    """The largest share that can be broken of so many inputs while its whole 95 % interval stays within `limit`.

    Where only a share near zero could pass, a repair that breaks less than `SMALLEST_SHARE` of the limit is as good as
    can be asked for; where nothing could, the verdict will be open anyway.
    """
    if not num_inputs:
        return UNPROVABLE_SHARE * limit
    # Wilson's interval is the score test turned round, whose spread is that of the limit itself.
    share = limit - NORMAL_975 * math.sqrt(limit * (1 - limit) / num_inputs)
    return max(share, SMALLEST_SHARE * limit) if share >= 0 else UNPROVABLE_SHARE * limit


def _with_hard_guard(case: Case) -> tuple[dict[str, LabelledImages], dict[str, Tensor], float]:
    """Splits and logits with the guard reduced to its answers of smallest margin, and their share of it.

    Nearly every answer that a repair breaks or fixes is among them, so the others need not be run at every step of a
    walk.
    """
    splits, logits = case.data.splits.present(), dict(case.baseline.logits)
    if "guard" not in splits or len(splits["guard"]) <= MAX_GUARD:
        return splits, logits, 1.0
    whole = splits["guard"]
    margins_N = margins_of(logits["guard"], torch.as_tensor(whole.labels))
    hardest = margins_N.abs().argsort()[:MAX_GUARD]
    splits["guard"], logits["guard"] = whole.subset(hardest.numpy()), logits["guard"][hardest]
    return splits, logits, MAX_GUARD / len(whole)
