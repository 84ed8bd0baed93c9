"""The fingerprint: mean and variance of every channel at the layers of a model, over some inputs, without labels.

A network with batch-norm carries one of its own healthy days: the running statistics. The same instrument tells which
block is damaged (localize/drift.py), what to train it towards (repairers/align.py) and what the world does to the
inputs (match.py). Statistics of a batch-norm are those of its *input*; of any other layer, of its output.

Legend: C channels of one layer.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from archrepair_core.modes import eval_mode

# A channel that never varies has no scale of its own; this much of a unit normalised tensor is nothing.
MIN_VARIANCE = 1e-5


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and variance per channel, over inputs and positions; float32 [C]."""

    mean_C: Tensor
    variance_C: Tensor


Fingerprint = Mapping[str, ChannelStatistics]


def has_statistics(module: nn.Module) -> bool:
    """Whether the module is a batch-norm that carries running statistics."""
    return isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None


def recorded_fingerprint(model: nn.Module) -> dict[str, ChannelStatistics]:
    """The running statistics of every batch-norm, by qualified name; empty for a model without any."""
    return {
        name: ChannelStatistics(module.running_mean.clone(), module.running_var.clone())
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def fingerprinted_layers(model: nn.Module) -> tuple[str, ...]:
    """The layers to compare two sets of inputs at: the batch-norms, or else every leaf that owns weights."""
    recorded = tuple(recorded_fingerprint(model))
    return recorded or tuple(
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not list(module.children())
    )


def measure_fingerprint(
    model: nn.Module, batches: Iterable[Tensor], layers: Collection[str]
) -> dict[str, ChannelStatistics]:
    """The statistics at `layers` over all of `batches`, one forward pass each in eval mode.

    Layers that a forward never calls are left out.
    """
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}
    device = next(model.parameters()).device
    with torch.inference_mode(), eval_mode(model), watch_channels(model, layers) as seen:
        for inputs in batches:
            seen.clear()
            model(inputs.to(device))
            for name, values_NC in seen.items():
                total, squares, count = sums.get(name, (0.0, 0.0, 0))
                values = values_NC.double()
                sums[name] = (total + values.sum(0), squares + values.square().sum(0), count + len(values))
    return {
        name: ChannelStatistics((total / count).float(), (squares / count - (total / count) ** 2).clamp_min(0).float())
        for name, (total, squares, count) in sums.items()
    }


def divergence(observed: ChannelStatistics, reference: ChannelStatistics) -> Tensor:
    """KL(N(observed) ‖ N(reference)) in nats, averaged over channels; a scalar that gradients pass through."""
    variance = observed.variance_C.clamp_min(MIN_VARIANCE)
    expected = reference.variance_C.clamp_min(MIN_VARIANCE)
    shift = (observed.mean_C - reference.mean_C) ** 2
    return 0.5 * ((variance + shift) / expected - 1 - (variance / expected).log()).mean()


def statistics_of(values_NC: Tensor) -> ChannelStatistics:
    """Mean and variance of live values, with their gradients."""
    return ChannelStatistics(values_NC.mean(0), values_NC.var(0, unbiased=False))


@contextmanager
def watch_channels(model: nn.Module, layers: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward leaves what each layer saw as [positions, C], live in the autograd graph.

    A layer called more than once in a forward keeps its last call.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        module = model.get_submodule(name)
        if isinstance(module, _BatchNorm):
            return module.register_forward_pre_hook(lambda _m, args: seen.__setitem__(name, _by_channel(args[0], 1)))
        last = -1 if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding) else 1
        return module.register_forward_hook(lambda _m, _args, out: seen.__setitem__(name, _by_channel(out, last)))

    handles = [keep(name) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _by_channel(value: Tensor, channel_axis: int) -> Tensor:
    return value.movedim(channel_axis, -1).flatten(0, -2)
