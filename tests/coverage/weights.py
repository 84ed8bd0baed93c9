"""Values for a model that make a comparison tell something: no zero scales, no fresh batch-norm statistics."""

import math
from typing import Any

import torch
from torch import nn

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
# Stochastic depth, by class name, and where it keeps its probability: an identity in eval mode leaves no trace.
_DROP_PATHS = {"StochasticDepth": "p", "DropPath": "drop_prob"}
_AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")


def randomise_(model: nn.Module, batch: tuple[Any, ...], *, keeps_values: bool) -> None:
    """Draw parameters that keep activations in range, then batch-norm statistics near those of `batch`.

    `keeps_values` leaves the parameters as their author set them.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and not keeps_values:
                _draw_(name, parameter)
        _settle_batch_norms_(model, batch)


def _draw_(name: str, parameter: nn.Parameter) -> None:
    if parameter.ndim >= 2:
        bound = math.sqrt(6 / parameter[0].numel())  # Kaiming: fan-in, for a ReLU
        parameter.uniform_(-bound, bound)
    elif name.endswith("bias"):
        parameter.uniform_(-0.1, 0.1)
    else:
        parameter.uniform_(0.5, 1.5)


def _settle_batch_norms_(model: nn.Module, batch: tuple[Any, ...]) -> None:
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        spread = norm.running_var.mean()
        norm.running_mean.add_(0.1 * spread.sqrt() * torch.randn_like(norm.running_mean))
        # A channel that was silent here may speak on other inputs: its variance must not be zero.
        norm.running_var.mul_(0.8 + 0.4 * torch.rand_like(norm.running_var)).add_(0.1 * spread + 1e-3)


def without_what_traces_lose_(model: nn.Module) -> list[str]:
    """Switch off in the eager model what a trace in eval mode cannot hold, and say what that was."""
    lost = []
    for module in model.modules():
        probability = _DROP_PATHS.get(type(module).__name__)
        if probability and getattr(module, probability):
            setattr(module, probability, 0.0)
            lost.append("stochastic depth")
    heads = [name for name in _AUXILIARY_HEADS if getattr(model, name, None) is not None]
    if heads:
        model.aux_logits = False
        for name in heads:
            setattr(model, name, None)
        lost.append("auxiliary heads")
    return sorted(set(lost))
