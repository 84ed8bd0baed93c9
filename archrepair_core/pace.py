"""How long a repair may take, until when, and in what precision it trains."""

from dataclasses import dataclass
from pathlib import Path

from archrepair_core.case import Case
from archrepair_core.checkpoint import Checkpoints, open_checkpoints
from archrepair_core.precision import Precision, bfloat16_gain, resolve_precision
from archrepair_core.processes import agreed, clock, num_processes

# Training the whole network well takes so many passes over the repair set, and over replayed data.
SETTLING_EPOCHS, REPLAY_EPOCHS = 12, 4
# `budget_seconds="auto"`: so many times that, within limits.
BUDGET_FACTOR = 2.0
MIN_BUDGET_SECONDS, MAX_BUDGET_SECONDS = 15.0, 3600.0
# One training step costs about three forward passes.
FORWARDS_PER_STEP = 3
# Inputs of the batch on which the precision of training is chosen.
PRECISION_BATCH = 32


@dataclass(frozen=True)
class Pace:
    """How long, until when (in `clock()` seconds) and in what precision to train, and where to leave what was done."""

    budget_seconds: float
    settling_seconds: float
    deadline: float
    precision: Precision
    checkpoints: Checkpoints | None

    @property
    def spent_seconds(self) -> float:
        """How much of the budget is used up, by earlier attempts too."""
        return self.budget_seconds - (self.deadline - clock())


def set_pace(case: Case, work_dir: Path) -> Pace:
    """What an earlier attempt of the same job spent has been spent. Several processes leave no checkpoints."""
    checkpoints = open_checkpoints(work_dir / "checkpoints") if num_processes() == 1 else None
    precision, gain = _choose_precision(case, checkpoints)
    settling_seconds = agreed(estimate_settling_seconds(case)) / gain
    asked = case.spec.repair.budget_seconds
    budget_seconds = asked if asked != "auto" else _within_limits(BUDGET_FACTOR * settling_seconds)
    deadline = clock() + budget_seconds - (checkpoints.spent_before if checkpoints else 0.0)
    return Pace(budget_seconds, settling_seconds, deadline, precision, checkpoints)


def estimate_settling_seconds(case: Case) -> float:
    """What training the whole network well takes in float32, from the speed of the baseline.

    Replayed data was learned once and needs fewer passes.
    """
    splits = case.data.splits
    inputs = SETTLING_EPOCHS * len(splits.repair) + REPLAY_EPOCHS * (len(splits.replay) if splits.replay else 0)
    return FORWARDS_PER_STEP * inputs / case.baseline.inputs_per_second


def _choose_precision(case: Case, checkpoints: Checkpoints | None) -> tuple[Precision, float]:
    """The precision to train in, and how many times as fast as float32 it is."""
    asked = case.spec.repair.precision
    if asked != "auto" or case.spec.kind != "repair":
        return ("float32" if asked == "auto" else asked), 1.0
    inputs = case.data.tensors("repair", slice(0, PRECISION_BATCH)).to(case.host.device)
    gain = agreed(bfloat16_gain(case.host.model, inputs))
    gain = checkpoints.decide(gain) if checkpoints else gain
    precision = resolve_precision(gain)
    return precision, gain if precision == "bfloat16" else 1.0


def _within_limits(seconds: float) -> float:
    return min(max(MIN_BUDGET_SECONDS, seconds), MAX_BUDGET_SECONDS)
