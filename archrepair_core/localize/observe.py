"""Watch every neuron of a model forwards and backwards: one pass per batch collects all that localization needs.

Shapes: I inputs (originals, then their adversarial twins), C channels of all watched layers side by side, P positions.
A neuron is an output channel of a convolution (spatial mean) or a unit of a linear layer (mean over tokens).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archrepair_core.localize.adversarial import Attack, advance
from archrepair_core.modes import eval_mode

WATCHED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Observations:
    """What every neuron did on every input: `activation_IC` channel means, `influence_IC` |Σ_w w·∂CE/∂w|.

    `layers` holds each layer's columns, in execution order. `right_I`: the model's answer was the label. `item_I` is
    the original's number, which its twin shares; twins are the rows from `num_items` on. `passes` counts inputs that
    went forwards and backwards.
    """

    layers: Mapping[str, slice]
    activation_IC: npt.NDArray[np.float32]
    influence_IC: npt.NDArray[np.float32]
    right_I: npt.NDArray[np.bool_]
    item_I: npt.NDArray[np.intp]
    num_items: int
    passes: int


@dataclass(frozen=True)
class _Seen:
    """One backward pass of one batch."""

    activation_IC: Tensor
    influence_IC: Tensor
    right_I: Tensor
    gradient: Tensor


def observe_inputs(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, also: Collection[str] = (), attack: Attack | None
) -> Observations | None:
    """Observe every convolution and linear layer, and the modules `also`, over `batches` of (inputs, labels) and, with
    an attack, over their twins: `steps + 1` passes per input, because the pass that observes is the first PGD step.

    The influence is exact per input without per-input weight gradients: a channel's output a is linear in its
    weights w, so Σ_w w·∂CE/∂w = Σ_positions (a − bias)·∂CE/∂a. For `also`, activation times gradient stands for it.
    None for a model whose layers are all written by hand.
    """
    originals: list[_Seen] = []
    twins: list[_Seen] = []
    device, passes = next(model.parameters()).device, 0
    with _recording(model, also) as outputs, torch.enable_grad():
        layers: dict[str, slice] = {}
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            seen = _observe(model, inputs, labels, outputs=outputs)
            if seen is None:
                return None
            layers = layers or _columns(outputs, model)
            originals.append(seen)
            passes += len(inputs)
            if attack is not None and attack.steps:
                moved = _make_twins(model, inputs, labels, first=seen, attack=attack)
                twin = _observe(model, moved, labels, outputs=outputs)
                assert twin is not None, "the same layers were reached a moment ago"
                twins.append(twin)
                passes += attack.steps * len(inputs)
    return _collect(layers, originals, twins, passes=passes)


def _make_twins(model: nn.Module, inputs: Tensor, labels: Tensor, *, first: _Seen, attack: Attack) -> Tensor:
    """`steps` PGD steps; the gradient of the first was measured while observing."""
    direction_N = torch.where(first.right_I, 1.0, -1.0)
    moved = advance(attack, inputs, inputs, gradient=first.gradient, direction_N=direction_N)
    for _ in range(attack.steps - 1):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), labels, reduction="sum"), moved)
        moved = advance(attack, moved.detach(), inputs, gradient=gradient, direction_N=direction_N)
    return moved


def _observe(model: nn.Module, inputs: Tensor, labels: Tensor, *, outputs: dict[str, Tensor]) -> _Seen | None:
    outputs.clear()
    inputs = inputs.detach().requires_grad_()
    logits = model(inputs)
    for name in [name for name, out in outputs.items() if not out.requires_grad]:
        del outputs[name]
    if not outputs:
        return None
    loss = F.cross_entropy(logits, labels, reduction="sum")
    gradients = torch.autograd.grad(loss, [inputs, *outputs.values()], allow_unused=True)
    gradient = gradients[0] if gradients[0] is not None else torch.zeros_like(inputs)
    with torch.no_grad():
        pairs = [
            _per_channel(model.get_submodule(name), out.detach(), gradient)
            for (name, out), gradient in zip(outputs.items(), gradients[1:], strict=True)
        ]
    activation_IC, influence_IC = (torch.cat(parts, dim=1).float().cpu() for parts in zip(*pairs, strict=True))
    return _Seen(activation_IC, influence_IC, logits.argmax(1) == labels, gradient)


def _per_channel(layer: nn.Module, output: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    channels_last = _is_channels_last(layer, output)
    output_ICP = _channels_then_positions(output, channels_last=channels_last)
    if gradient is None:
        return output_ICP.mean(2), torch.zeros_like(output_ICP[:, :, 0])
    gradient_ICP = _channels_then_positions(gradient, channels_last=channels_last)
    influence_IC = (output_ICP * gradient_ICP).sum(2)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        influence_IC = influence_IC - bias.detach() * gradient_ICP.sum(2)
    return output_ICP.mean(2), influence_IC.abs()


def _is_channels_last(layer: nn.Module, output: Tensor) -> bool:
    return isinstance(layer, nn.Linear) or (not isinstance(layer, WATCHED) and output.dim() <= 3)


def _channels_then_positions(value: Tensor, *, channels_last: bool) -> Tensor:
    if channels_last and value.dim() > 2:
        value = value.movedim(-1, 1)
    return value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)


def _columns(outputs: Mapping[str, Tensor], model: nn.Module) -> dict[str, slice]:
    columns: dict[str, slice] = {}
    start = 0
    for name, out in outputs.items():
        width = out.shape[-1 if _is_channels_last(model.get_submodule(name), out) else 1]
        columns[name] = slice(start, start + width)
        start += width
    return columns


def _collect(layers: Mapping[str, slice], originals: list[_Seen], twins: list[_Seen], *, passes: int) -> Observations:
    seen = [*originals, *twins]
    num_items = sum(len(batch.right_I) for batch in originals)
    items = np.arange(num_items)
    return Observations(
        layers,
        torch.cat([batch.activation_IC for batch in seen]).numpy(),
        torch.cat([batch.influence_IC for batch in seen]).numpy(),
        torch.cat([batch.right_I for batch in seen]).cpu().numpy(),
        np.concatenate([items, items]) if twins else items,
        num_items,
        passes,
    )


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
