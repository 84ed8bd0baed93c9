"""Watch every neuron of a model forwards and backwards: one pass per batch collects all that localization needs.

Shapes: I inputs, C channels of one layer. A neuron is an output channel of a convolution (spatial mean) or a unit of a
linear layer (mean over tokens).
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archrepair_core.modes import eval_mode

WATCHED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class LayerObservation:
    """What one layer did on each input: `activation_IC` channel means, `influence_IC` |Σ_w w·∂CE/∂w| per channel."""

    layer: str
    activation_IC: npt.NDArray[np.float32]
    influence_IC: npt.NDArray[np.float32]


def observe_layers(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, also: Collection[str] = ()
) -> list[LayerObservation]:
    """Observe every convolution and linear layer, and the modules `also`, over `batches` of (inputs, labels), in
    execution order.

    The influence is exact per input without per-input weight gradients: a channel's output a is linear in its
    weights w, so Σ_w w·∂CE/∂w = Σ_positions (a − bias)·∂CE/∂a. For `also`, activation times gradient stands for it.
    """
    activations: dict[str, list[Tensor]] = {}
    influences: dict[str, list[Tensor]] = {}
    device = next(model.parameters()).device
    with _recording(model, also) as outputs, torch.enable_grad():
        for inputs, labels in batches:
            outputs.clear()
            loss = F.cross_entropy(model(inputs.to(device).requires_grad_()), labels.to(device), reduction="sum")
            names = [name for name, out in outputs.items() if out.requires_grad]
            if not names:  # a model whose layers are all written by hand
                return []
            gradients = torch.autograd.grad(loss, [outputs[name] for name in names], allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                activation, influence = _per_channel(model.get_submodule(name), outputs[name].detach(), gradient)
                activations.setdefault(name, []).append(activation.cpu())
                influences.setdefault(name, []).append(influence.cpu())
    return [
        LayerObservation(name, torch.cat(parts).numpy(), torch.cat(influences[name]).numpy())
        for name, parts in activations.items()
    ]


def _per_channel(layer: nn.Module, output: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    channels_last = isinstance(layer, nn.Linear) or (not isinstance(layer, WATCHED) and output.dim() <= 3)
    output_ICP = _channels_then_positions(output, channels_last=channels_last)
    if gradient is None:
        return output_ICP.mean(2), torch.zeros_like(output_ICP[:, :, 0])
    gradient_ICP = _channels_then_positions(gradient, channels_last=channels_last)
    bias = getattr(layer, "bias", None)
    weighted_ICP = output_ICP if bias is None else output_ICP - bias.detach().view(1, -1, 1)
    return output_ICP.mean(2), (weighted_ICP * gradient_ICP).sum(2).abs()


def _channels_then_positions(value: Tensor, *, channels_last: bool) -> Tensor:
    if channels_last and value.dim() > 2:
        value = value.movedim(-1, 1)
    return value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)


@contextmanager
def _recording(model: nn.Module, also: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Keep each watched layer's output; a layer called twice keeps its last output. The model is in eval mode."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(name).register_forward_hook(lambda _m, _args, out: outputs.__setitem__(name, out))

    watched = [name for name, module in model.named_modules() if isinstance(module, WATCHED) or name in also]
    handles = [keep(name) for name in watched]
    try:
        with eval_mode(model):
            yield outputs
    finally:
        for handle in handles:
            handle.remove()
