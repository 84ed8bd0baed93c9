"""How much every single weight has to do with some inputs: its loss gradient, and its forward impact.

Both are Arachne's (Sohn, Kang & Yoo, "Arachne: Search-Based Repair of Deep Neural Networks", TOSEM 2023, section 3.1);
the gradients alone choose what the levels of ArchRepair's empirical study train. Biases are left out, as there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from archrepair_core.localize.observe import WATCHED
from archrepair_core.modes import eval_mode

# Where nothing flows into a neuron, none of its weights has a share in it.
TINY = 1e-12


@dataclass(frozen=True)
class Influence:
    """Of one layer's weights, in their shape: |Σ ∂CE/∂w|, summed over inputs; and the mean forward impact."""

    gradient: Tensor
    impact: Tensor


def weighted_layers(model: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers: along one axis of their weight stand their neurons."""
    return [
        name
        for name, module in model.named_modules()
        if name and isinstance(module, WATCHED) and not (isinstance(module, nn.ConvTranspose2d) and module.groups > 1)
    ]


def loss_gradients(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], layers: Sequence[str]
) -> dict[str, Tensor]:
    """|Σ ∂CE/∂w| by layer, over `batches` of (inputs, labels) on the model's device."""
    with _differentiable(model, layers) as weights:
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for inputs, labels in batches:
            _add_gradients_(total, F.cross_entropy(model(inputs), labels, reduction="sum"), weights)
    return {name: gradient.abs() for name, gradient in total.items()}


def measure_influence(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], layers: Sequence[str]
) -> dict[str, Influence]:
    """Gradient and impact of every weight of `layers`, over `batches` of (inputs, labels) on the model's device.

    The impact of w_ij is its share |o_i·w_ij| / Σ_i |o_i·w_ij| in neuron j, times the share of j in |∂O/∂o_j| over its
    layer; a convolution's is summed over positions. All weights of a layer cost two passes through it.
    """
    with _differentiable(model, layers) as weights, recorded(model, layers) as seen:
        gradient = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        impact = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        count = 0
        for inputs, labels in batches:
            seen.clear()
            logits = model(inputs)
            reached = {name: pair for name, pair in seen.items() if pair[1].requires_grad}
            outputs = [output for _, output in reached.values()]
            behind = torch.autograd.grad(logits.sum(), outputs, retain_graph=True, allow_unused=True)
            for (name, (entering, output)), slope in zip(reached.items(), behind, strict=True):
                slope = torch.zeros_like(output) if slope is None else slope
                impact[name] += _impact(model.get_submodule(name), entering, slope)
            _add_gradients_(gradient, F.cross_entropy(logits, labels, reduction="sum"), weights)
            count += len(inputs)
    return {name: Influence(gradient[name].abs(), impact[name] / max(1, count)) for name in layers}


def _impact(layer: nn.Module, entering: Tensor, slope: Tensor) -> Tensor:
    """Summed over the inputs of a batch, in the shape of the weight.

    Σ_i |o_i·w_ij| is what the layer gives for |o| with |w| and without its bias; what a weight adds to it is read off
    the gradient, because it is linear in the weights.
    """
    magnitude = layer.weight.detach().abs().requires_grad_()  # type: ignore[operator]
    state = {"weight": magnitude}
    if getattr(layer, "bias", None) is not None:
        state["bias"] = torch.zeros_like(layer.bias)  # type: ignore[arg-type]
    flow = functional_call(layer, state, (entering.detach().abs(),))
    behind = slope.abs() / slope.abs().flatten(1).sum(1).clamp_min(TINY).view(-1, *[1] * (slope.dim() - 1))
    share = behind / flow.detach().clamp_min(TINY)
    (per_weight,) = torch.autograd.grad((flow * share).sum(), magnitude)
    return per_weight * magnitude.detach()


def _add_gradients_(total: dict[str, Tensor], loss: Tensor, weights: Mapping[str, Tensor]) -> None:
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, found, strict=True):
        if gradient is not None:
            total[name] += gradient


@contextmanager
def _differentiable(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """The weights by layer, with gradients on; afterwards every parameter is as it was."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in layers}
    for parameter, _ in asked:
        parameter.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        with eval_mode(model), torch.enable_grad():
            yield weights
    finally:
        for parameter, wanted in asked:
            parameter.requires_grad_(wanted)


@contextmanager
def recorded(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Input and output of each layer at its last call."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(name).register_forward_hook(
            lambda _module, args, output: seen.__setitem__(name, (args[0], output))
        )

    handles = [keep(name) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
