"""The arena of a case: features cached at every cut, and the limits that its gates put on every trial."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from archrepair_core.case import Case
from archrepair_core.data.images import LabelledImages
from archrepair_core.features import DiskBudget
from archrepair_core.gates import parse_gate
from archrepair_core.pace import Pace, estimate_settling_seconds
from archrepair_core.prefix_cache import PrefixCache
from archrepair_core.search.search import Arena
from archrepair_core.selection import margins_of
from archrepair_core.spec import DEFAULT_GATES

# A candidate must stay this far inside the limit that the gate will hold it to on test: 200 inputs tell the share it
# will break to half a point (selection.expected_broken), and the gate wants its whole interval inside.
BROKEN_MARGIN, GUARD_MARGIN = 0.6, 0.5
# What works today is watched on so many inputs.
MAX_GUARD = 512


def make_arena(case: Case, work_dir: Path, on_progress: Callable[[str], None], pace: Pace | None = None) -> Arena:
    """What every trial shares; features are computed when a trial first asks for them."""
    spec, host = case.spec.repair, case.host
    splits, logits, guard_share = _with_hard_guard(case)
    cache = PrefixCache(
        model=host.model,
        splits=splits,
        original_logits=logits,
        preprocessing=case.data.preprocessing,
        views=case.baseline.augmentation.views,
        work_dir=work_dir,
        device=host.device,
        budget=DiskBudget(spec.cache_gb * 1e9),
    )
    return Arena(
        host.model,
        {"original": cache},
        host.blocks,
        spec,
        max_broken=_limit(case, "test", margin=BROKEN_MARGIN),
        max_guard_broken=_limit(case, "regression", margin=GUARD_MARGIN) / guard_share,
        reference=case.reference,
        settling_seconds=pace.settling_seconds if pace else estimate_settling_seconds(case),
        seed=case.spec.seed,
        on_progress=on_progress,
        precision=pace.precision if pace else "float32",
        checkpoints=pace.checkpoints if pace else None,
    )


def _limit(case: Case, split: str, *, margin: float) -> float:
    """The share of the split's inputs that a candidate may break: inside the strictest gate on it, or any share.

    A gate on what accuracy may lose bounds it too: on inputs that work there is nothing to win in exchange.
    """
    expressions = DEFAULT_GATES if case.spec.gates == "auto" else case.spec.gates
    gates = [gate for gate in map(parse_gate, expressions) if gate.metric.startswith(f"{split}.")]
    limits = [gate.limit for gate in gates if gate.metric.endswith(".broken_rate")]
    if split == "regression":
        limits += [-gate.limit for gate in gates if gate.metric.endswith(".accuracy") and gate.relative]
    return margin * max(0.0, min(limits, default=1.0 / margin))


def _with_hard_guard(case: Case) -> tuple[dict[str, LabelledImages], dict[str, Tensor], float]:
    """Splits and logits with the guard reduced to its right answers of smallest margin, and their share of it.

    Nearly every answer that a repair breaks is among them, so the others need not be run at every step of a walk.
    """
    splits, logits = case.data.splits.present(), dict(case.baseline.logits)
    if "guard" not in splits or len(splits["guard"]) <= MAX_GUARD:
        return splits, logits, 1.0
    whole = splits["guard"]
    margins_N = margins_of(logits["guard"], torch.as_tensor(whole.labels))
    hardest = margins_N.where(margins_N > 0, torch.inf).argsort()[:MAX_GUARD]
    splits["guard"], logits["guard"] = whole.subset(hardest.numpy()), logits["guard"][hardest]
    return splits, logits, MAX_GUARD / len(whole)
