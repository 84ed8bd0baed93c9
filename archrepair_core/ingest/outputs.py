"""What a model answered, compared tensor by tensor, however it is nested."""

import math
from typing import Any

import torch
from torch import Tensor

# Below this, a model's answers count as zero and differences are not divided by them.
_SMALLEST_SCALE = 1e-6


def tensors_in(value: Any, name: str = "output") -> dict[str, Tensor]:
    """The tensors of nested tuples, lists and dicts, named by where they stand: `output[0]`, `output['logits']`."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, dict):
        items = [(repr(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {}
    return {key: tensor for index, item in items for key, tensor in tensors_in(item, f"{name}[{index}]").items()}


def largest_difference(value: Any, reference: Any) -> float:
    """Largest absolute difference of any two tensors; infinite if they are nested, typed or shaped otherwise."""
    return max((difference for difference, _ in _differences(value, reference)), default=0.0)


def largest_relative_difference(value: Any, reference: Any) -> float:
    """Largest difference divided by the largest magnitude in the same tensor of `reference`."""
    return max((difference / scale for difference, scale in _differences(value, reference)), default=0.0)


def _differences(value: Any, reference: Any) -> list[tuple[float, float]]:
    ours, theirs = tensors_in(value), tensors_in(reference)
    if ours.keys() != theirs.keys():
        return [(math.inf, 1.0)]
    return [_difference(ours[name], theirs[name]) for name in theirs]


def _difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return math.inf, 1.0
    if torch.equal(ours, theirs) or not theirs.numel():
        return 0.0, 1.0
    first, second = ours.detach().double().cpu(), theirs.detach().double().cpu()
    # Infinities and NaNs at the same place are the same answer.
    same = (first == second) | (first.isnan() & second.isnan())
    gap = torch.where(same, 0.0, (first - second).abs()).nan_to_num(nan=math.inf)
    scale = second.abs().nan_to_num(nan=0.0, posinf=0.0).max().item()
    return gap.max().item(), max(scale, _SMALLEST_SCALE)
