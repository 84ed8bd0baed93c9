"""Adversarial twins: the nearest input on the other side. Passing inputs are pushed to fail, failing ones to pass.

Projected gradient descent without a random start (Madry et al., "Towards Deep Learning Models Resistant to Adversarial
Attacks", ICLR 2018, eq. 1 of §2.1), so that the same inputs have the same twins. One gradient serves both directions:
CE of the true label is climbed where the model is right (untargeted) and descended where it is wrong (targeted).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from archrepair_core.data.preprocessing import SCALE_LIMITS
from archrepair_core.spec import Adversarial, Preprocessing

# Madry et al. take steps that could cross the ball about twice.
CROSSINGS = 2.5


@dataclass(frozen=True)
class Attack:
    """PGD in the model's units: `pixel_C` is one pixel unit (0–1) per channel, `low_C`/`high_C` bound valid inputs.

    The three are [1, C, 1, 1].
    """

    norm: str
    epsilon: float
    steps: int
    pixel_C: Tensor
    low_C: Tensor
    high_C: Tensor


def plan_attack(asked: Adversarial, preprocessing: Preprocessing, inputs: Tensor) -> Attack:
    """The attack for images preprocessed like `inputs` [N, C, H, W].

    Float images that are taken as they are have no declared range: what the inputs span counts as 0 to 1.
    """
    limit = SCALE_LIMITS.get(preprocessing.scale)
    ones_C = torch.ones(1, inputs.shape[1], 1, 1)
    if limit is None:
        low, high = float(inputs.min()), float(inputs.max())
        return Attack(asked.norm, asked.epsilon, asked.steps, (high - low) * ones_C, low * ones_C, high * ones_C)
    mean_C, std_C = 0 * ones_C, ones_C
    if preprocessing.mean is not None and preprocessing.std is not None:
        mean_C, std_C = (torch.tensor(x).view(1, -1, 1, 1) for x in (preprocessing.mean, preprocessing.std))
    return Attack(asked.norm, asked.epsilon, asked.steps, limit / std_C, -mean_C / std_C, (limit - mean_C) / std_C)


def advance(attack: Attack, twins: Tensor, inputs: Tensor, *, gradient: Tensor, direction_N: Tensor) -> Tensor:
    """One PGD step from `twins`: along `gradient` times `direction_N` (+1 or -1), kept within ε and the valid range."""
    pixel_C = attack.pixel_C.to(inputs.device)
    # Distances are measured in pixels: the chain rule turns the gradient, the division the way back.
    uphill = gradient * pixel_C * direction_N.view(-1, 1, 1, 1)
    step = uphill.sign() if attack.norm == "linf" else uphill / _length(uphill)
    offset = (twins - inputs) / pixel_C + CROSSINGS * attack.epsilon / attack.steps * step
    if attack.norm == "linf":
        offset = offset.clamp(-attack.epsilon, attack.epsilon)
    else:
        offset = offset * (attack.epsilon / _length(offset)).clamp(max=1.0)
    moved = inputs + offset * pixel_C
    # A resize may have left the valid range by rounding: such a pixel stays where it is.
    low_C, high_C = attack.low_C.to(inputs.device), attack.high_C.to(inputs.device)
    return moved.clamp(torch.minimum(low_C, inputs), torch.maximum(high_C, inputs)).detach()


def _length(value: Tensor) -> Tensor:
    return value.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
