"""Weights that are numbers: a NaN answers NaN to every input, and no gradient leads away from it."""

import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError

_SHOWN = 5


def refuse_non_finite(model: nn.Module) -> None:
    """Raises ModelError `non_finite_weights` naming the tensors.

    Parameters must be finite. Buffers may hold infinities, as attention masks do, but no NaN.
    """
    found = [f"parameter {name} ({_count(tensor)})" for name, tensor in model.named_parameters() if _count(tensor)]
    found += [f"buffer {name}" for name, tensor in model.named_buffers() if bool(tensor.isnan().any())]
    if found:
        shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        detail = f"The model holds values that are not finite numbers: {shown}."
        hint = "The training most likely diverged, or the file was damaged: send an earlier checkpoint."
        raise ModelError("non_finite_weights", detail, hint=hint)


def _count(tensor: Tensor) -> int:
    return int(tensor.numel() - torch.isfinite(tensor).sum())
