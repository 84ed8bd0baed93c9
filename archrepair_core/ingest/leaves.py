"""`torch.nn` layers rebuilt as the real classes, where the archive's graphs prove that they are.

One table from class name to what such a layer computes. The name alone decides nothing: its methods must run exactly
one of the listed operators, on the layer's own tensors, in both modes; else the layer is generated from its graphs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from archrepair_core.ingest.graphs import bare_name, method_names, type_name
from archrepair_core.ingest.straight_line import Step, StraightLine, Symbol, UndecidableError, straight_line

Tensors = Mapping[str, torch.Tensor]
Make = Callable[[Step, Tensors], nn.Module | None]

_TORCH_NN = "__torch__.torch.nn.modules."
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Leaf:
    """What a layer computes, and how to make it from the operator's arguments; `flag` names the training argument."""

    operators: tuple[str, ...]
    make: Make
    flag: str = ""


# What the constructors of torch.nn raise for arguments that make no layer.
_REFUSALS = (ValueError, TypeError, RuntimeError, AssertionError, ZeroDivisionError)


def build_leaf(original: torch.jit.ScriptModule) -> nn.Module | None:
    """The real `torch.nn` layer that `original` is, without its tensors' values; None if the graphs do not prove it."""
    qualified = bare_name(type_name(original))
    class_name = qualified.rpartition(".")[2]
    leaf = _LEAVES.get(class_name)
    if leaf is None or not qualified.startswith(_TORCH_NN) or next(original.children(), None) is not None:
        return None
    tensors = {**dict(original.named_parameters()), **dict(original.named_buffers())}
    step = _proven_step(original, leaf, tensors)
    try:
        module = leaf.make(step, tensors) if step is not None else None
    except _REFUSALS:
        return None  # no such layer exists; what its operator says to such arguments, running it will show
    if module is None or _shapes(dict(module.state_dict())) != _shapes(tensors):
        return None
    # What the registries hold is on the meta device: `fill_tensors` puts the archive's in.
    return module


def leaf_of(class_name: str, steps: list[Step], tensors: Tensors) -> nn.Module | None:
    """The `torch.nn` layer named `torch.nn.modules.….X`, if each of its calls ran the one operator such a layer runs.

    `steps` are those calls, in eval mode, with every argument of the schema; None if they do not prove it.
    """
    module_name, _, last = class_name.rpartition(".")
    leaf = _LEAVES.get(last)
    if leaf is None or not f"{module_name}.".startswith("torch.nn.modules.") or any(step != steps[0] for step in steps):
        return None
    line = StraightLine((steps[0],), Symbol("result:0"))
    step = _only_step(line, leaf)
    if step is None or not _is_wired(step, tensors):
        return None
    module = leaf.make(step, tensors)
    return module if module is not None and _shapes(dict(module.state_dict())) == _shapes(tensors) else None


def _shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _proven_step(original: torch.jit.ScriptModule, leaf: Leaf, tensors: Tensors) -> Step | None:
    forwards = [method for method in method_names(original) if method.startswith("forward")]
    try:
        lines = [
            (straight_line(original, method, training=False), straight_line(original, method, training=True))
            for method in forwards
        ]
    except UndecidableError:
        return None
    if not lines or any(line != lines[0] for line in lines):
        return None
    evaluating, training = lines[0]
    step = _only_step(evaluating, leaf)
    if step is None or not _trains_alike(step, training, leaf, tensors) or not _is_wired(step, tensors):
        return None
    return step


def _only_step(line: StraightLine, leaf: Leaf) -> Step | None:
    if leaf.operators == ():
        return Step("", {"input": line.result}) if not line.steps else None
    if len(line.steps) != 1 or line.result != Symbol("result:0") or line.steps[0].operator not in leaf.operators:
        return None
    step = line.steps[0]
    return None if leaf.flag and step.arguments[leaf.flag] is not False else step


def _trains_alike(step: Step, training: StraightLine, leaf: Leaf, tensors: Tensors) -> bool:
    """Whether training does the same with the flag set; a trace shows the flag of the mode it was made in."""
    if leaf.operators == ():
        return not training.steps
    *before, last = training.steps
    counts = [Step("aten::add_", {"self": Symbol(f"tensor:{_COUNTER}"), "other": 1, "alpha": 1})]
    if training.result != Symbol(f"result:{len(before)}") or (before and before != counts):
        return False
    if not leaf.flag:
        return not before and last == step
    is_trace = last == step
    trained = Step(step.operator, {**step.arguments, leaf.flag: True})
    return is_trace or (last == trained and bool(before) == (_COUNTER in tensors))


def _is_wired(step: Step, tensors: Tensors) -> bool:
    """Whether the input and every tensor of the layer stand where such an operator takes them, and nothing else."""
    used = set()
    inputs = 0
    for argument, value in step.arguments.items():
        if value == Symbol("input:0"):
            inputs += 1
        elif isinstance(value, Symbol):
            if value != Symbol(f"tensor:{argument}"):
                return False
            used.add(argument)
        elif isinstance(value, list) and any(isinstance(item, Symbol) for item in value):
            return False
    return inputs == 1 and used == tensors.keys() - {_COUNTER}


def _convolution(layer: Callable[..., nn.Module], step: Step, tensors: Tensors) -> nn.Module | None:
    weight = tensors["weight"]
    if step.arguments.get("transposed") or any(step.arguments.get("output_padding", ())):
        return None
    padding = step.arguments["padding"]
    return layer(
        weight.shape[1] * step.arguments["groups"],
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(step.arguments["stride"]),
        padding=padding if isinstance(padding, str) else tuple(padding),
        dilation=tuple(step.arguments["dilation"]),
        groups=step.arguments["groups"],
        bias="bias" in tensors,
        device="meta",
    )


def _linear(layer: Callable[..., nn.Module], _: Step, tensors: Tensors) -> nn.Module | None:
    outputs, inputs = tensors["weight"].shape
    return layer(inputs, outputs, bias="bias" in tensors, device="meta")


def _batch_norm(layer: Callable[..., nn.Module], step: Step, tensors: Tensors) -> nn.Module | None:
    if "running_mean" not in tensors:
        return None
    # A trace in eval mode shows a momentum of None (cumulative average) as 0.
    return layer(
        tensors["running_mean"].shape[0],
        eps=step.arguments["eps"],
        momentum=step.arguments["momentum"] or None,
        affine="weight" in tensors,
        device="meta",
    )


def _layer_norm(step: Step, tensors: Tensors) -> nn.Module | None:
    return nn.LayerNorm(
        step.arguments["normalized_shape"],
        eps=step.arguments["eps"],
        elementwise_affine="weight" in tensors,
        bias="bias" in tensors,
        device="meta",
    )


def _group_norm(step: Step, tensors: Tensors) -> nn.Module | None:
    if "weight" not in tensors:
        return None
    channels = tensors["weight"].shape[0]
    return nn.GroupNorm(step.arguments["num_groups"], channels, eps=step.arguments["eps"], device="meta")


def _embedding(step: Step, tensors: Tensors) -> nn.Module | None:
    count, width = tensors["weight"].shape
    padding = step.arguments["padding_idx"]
    flags = {"scale_grad_by_freq": step.arguments["scale_grad_by_freq"], "sparse": step.arguments["sparse"]}
    return nn.Embedding(count, width, padding_idx=None if padding < 0 else padding, device="meta", **flags)


def _prelu(_: Step, tensors: Tensors) -> nn.Module | None:
    return nn.PReLU(tensors["weight"].numel(), device="meta")


def _with(layer: Callable[..., nn.Module], *names: str) -> Make:
    """A layer that takes the operator's arguments under the same names; lists become tuples."""
    return lambda step, _: layer(**{name: _frozen(step.arguments[name]) for name in names})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _max_pool(layer: Callable[..., nn.Module], step: Step, _: Tensors) -> nn.Module | None:
    names = ("kernel_size", "padding", "dilation", "ceil_mode")
    return layer(stride=_stride(step), **{name: _frozen(step.arguments[name]) for name in names})


def _avg_pool(layer: Callable[..., nn.Module], step: Step, _: Tensors) -> nn.Module | None:
    names = [n for n in step.arguments if n not in ("self", "input", "stride")]
    return layer(stride=_stride(step), **{name: _frozen(step.arguments[name]) for name in names})


def _stride(step: Step) -> Any:
    # An empty stride means the kernel size; the eager layers spell that None.
    return tuple(step.arguments["stride"]) or None


def _relu6(step: Step, _: Tensors) -> nn.Module | None:
    # Traces show the clamp that relu6 is made of.
    if (step.arguments.get("min_val", 0), step.arguments.get("max_val", 6)) != (0, 6):
        return None
    return nn.ReLU6(inplace=step.operator.endswith("_"))


def _in_place(operator: str, layer: Callable[..., nn.Module], *names: str, flag: str = "") -> Leaf:
    """A layer with an `inplace` switch, which shows as the underscore in the operator's name."""

    def make(step: Step, _: Tensors) -> nn.Module:
        return layer(inplace=step.operator.endswith("_"), **{name: step.arguments[name] for name in names})

    return Leaf((operator, f"{operator}_"), make, flag)


def _by_dimension(
    template: str, operators: tuple[str, ...], make: Callable[..., nn.Module | None], flag: str = ""
) -> dict[str, Leaf]:
    """The same layer in one, two and three dimensions."""
    return {
        template.format(d): Leaf(
            tuple(operator.format(d) for operator in operators), partial(make, getattr(nn, template.format(d))), flag
        )
        for d in (1, 2, 3)
    }


def _adaptive_pool(layer: Callable[..., nn.Module], step: Step, _: Tensors) -> nn.Module | None:
    return layer(_frozen(step.arguments["output_size"]))


_LEAVES: MappingProxyType[str, Leaf] = MappingProxyType(
    {
        **_by_dimension("Conv{}d", ("aten::conv{}d", "aten::_convolution", "aten::_convolution_mode"), _convolution),
        **_by_dimension("BatchNorm{}d", ("aten::batch_norm",), _batch_norm, "training"),
        **_by_dimension("MaxPool{}d", ("aten::max_pool{}d",), _max_pool),
        **_by_dimension("AvgPool{}d", ("aten::avg_pool{}d",), _avg_pool),
        **_by_dimension("AdaptiveAvgPool{}d", ("aten::adaptive_avg_pool{}d",), _adaptive_pool),
        "Dropout": _in_place("aten::dropout", nn.Dropout, "p", flag="train"),
        "Dropout2d": _in_place("aten::feature_dropout", nn.Dropout2d, "p", flag="train"),
        "ELU": _in_place("aten::elu", nn.ELU, "alpha"),
        "Embedding": Leaf(("aten::embedding",), _embedding),
        "Flatten": Leaf(("aten::flatten",), _with(nn.Flatten, "start_dim", "end_dim")),
        "GELU": Leaf(("aten::gelu",), _with(nn.GELU, "approximate")),
        "GroupNorm": Leaf(("aten::group_norm",), _group_norm),
        "Hardsigmoid": _in_place("aten::hardsigmoid", nn.Hardsigmoid),
        "Hardswish": _in_place("aten::hardswish", nn.Hardswish),
        "Identity": Leaf((), lambda _step, _tensors: nn.Identity()),
        "LayerNorm": Leaf(("aten::layer_norm",), _layer_norm),
        "LeakyReLU": _in_place("aten::leaky_relu", nn.LeakyReLU, "negative_slope"),
        "Linear": Leaf(("aten::linear",), partial(_linear, nn.Linear)),
        "NonDynamicallyQuantizableLinear": Leaf(("aten::linear",), partial(_linear, NonDynamicallyQuantizableLinear)),
        "LogSoftmax": Leaf(("aten::log_softmax",), _with(nn.LogSoftmax, "dim")),
        "Mish": _in_place("aten::mish", nn.Mish),
        "PReLU": Leaf(("aten::prelu",), _prelu),
        "ReLU": _in_place("aten::relu", nn.ReLU),
        "ReLU6": Leaf(("aten::relu6", "aten::relu6_", "aten::hardtanh", "aten::hardtanh_"), _relu6),
        "SiLU": _in_place("aten::silu", nn.SiLU),
        "Sigmoid": Leaf(("aten::sigmoid",), _with(nn.Sigmoid)),
        "Softmax": Leaf(("aten::softmax",), _with(nn.Softmax, "dim")),
        "Tanh": Leaf(("aten::tanh",), _with(nn.Tanh)),
    }
)
