"""What one forward pass does with each module: called how often, with which tensors, and what it gives.

Read off a run, never off source or class names: rebuilt TorchScript modules carry any name and any signature.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from archrepair_core.modes import eval_mode

# Two images show the structure of a model as well as sixty-four, and one would hide a mistaken batch dimension.
STRUCTURE_BATCH = 2

Shape = tuple[int, ...]

# How a trace names what a module does when called again (ingest/decompile.py); hooks do not see these calls.
_OTHER_FORWARD = re.compile(r"forward(\d+|__\d+)")


@dataclass(frozen=True)
class Entered:
    """What one call was given: by argument, the shapes of its tensors that come from the model's input, without batch.

    `borrowed` are parameters and buffers of the host that were passed in.
    """

    shapes: dict[str, tuple[Shape, ...]]
    borrowed: tuple[str, ...] = ()

    @property
    def together(self) -> Shape | None:
        """The shape of all tensors concatenated over their channels, None where they do not fit together."""
        shapes = [shape for given in self.shapes.values() for shape in given]
        if len(shapes) == 1:
            return shapes[0]
        if len({_without_channels(shape) for shape in shapes}) != 1 or not shapes[0]:
            return None
        axis, channels = channel_axis(shapes[0]), sum(shape[channel_axis(shape)] for shape in shapes)
        return (*shapes[0][:axis], channels, *shapes[0][axis + 1 :])


@dataclass
class Call:
    """What a forward pass did with a module, over its `count` calls in one pass; `order` is that of the first."""

    module: nn.Module
    order: int
    count: int = 0
    entered: list[Entered] = field(default_factory=list)
    output_shapes: list[Shape | None] = field(default_factory=list)
    # Positions in the autograd graph, taken during the pass: later in-place operations move a tensor's grad_fn.
    input_nodes: frozenset[Node] = frozenset()
    output_node: Node | None = None
    # Where the branches of earlier repairs end: what counts as the structure of the model is without them.
    hidden_nodes: frozenset[Node] = frozenset()
    # A cell that an earlier repair put in the place of a block: it counts as one layer, whatever it is made of.
    is_cell: bool = False

    @property
    def input_shape(self) -> Shape | None:
        """Without the batch dimension; several tensors that fit together count as their concatenation."""
        return self.entered[0].together if self.entered else None

    @property
    def output_shape(self) -> Shape | None:
        """Without the batch dimension; None unless every call gave one tensor."""
        return self.output_shapes[0] if self.output_shapes else None

    @property
    def refusal(self) -> str:
        """Why the module cannot be a block, for people; empty when it can.

        `requires_grad` is not asked: it tells how the last training was set up, not what the module is.
        """
        if any(_OTHER_FORWARD.fullmatch(method) for method in dir(type(self.module))):
            return "has several forwards, one per call of the trace"
        if any(shape is None for shape in self.output_shapes) or not self.output_shapes:
            return "gives something other than one tensor"
        if self.input_shape is None:
            return "takes no tensor of the model's input, or several that do not fit together"
        if any(call != self.entered[0] for call in self.entered) or len(set(self.output_shapes)) > 1:
            return "is called with tensors of changing shapes"
        if not self.entered[0].borrowed and not any(p.is_floating_point() for p in self.module.parameters()):
            return "has no weights"
        return ""

    @property
    def replaceable(self) -> bool:
        """Whether another module can stand in its place: one tensor comes out, what goes in fits together."""
        return not self.refusal

    @property
    def weighted(self) -> bool:
        """Owns or borrows a weight matrix or kernel itself: a convolution, a linear layer, an attention projection."""
        own = any(parameter.ndim >= 2 for parameter in self.module.parameters(recurse=False))
        return self.is_cell or own or any(call.borrowed for call in self.entered)


def channel_axis(shape: Shape) -> int:
    """Where the channels stand in a shape without batch dimension: first in images, last in tokens and vectors."""
    return 0 if len(shape) >= 3 else len(shape) - 1


def _without_channels(shape: Shape) -> Shape:
    axis = channel_axis(shape)
    return (len(shape), *shape[:axis], *shape[axis + 1 :])


def trace_calls(model: nn.Module, inputs: Tensor) -> dict[str, Call]:
    """What one eval-mode forward over the first images calls, by qualified name (`""` is root), first call first."""
    calls: dict[str, Call] = {}
    probe = inputs[:STRUCTURE_BATCH].detach()
    if probe.is_floating_point():
        # A copy that is no leaf: models may normalise their input in place, and the caller keeps his tensor.
        probe = probe.clone().requires_grad_().clone()
    with eval_mode(model), torch.enable_grad(), _recording(model, calls):
        model(probe)
    return calls


@contextmanager
def _recording(model: nn.Module, calls: dict[str, Call]) -> Iterator[None]:
    names = {module: name for name, module in model.named_modules()}
    owned = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = calls.setdefault(names[module], Call(module, order=len(calls)))
        call.count += 1
        passed, borrowed = _sort_out(_by_name(module, args, kwargs), owned)
        shapes = {key: tuple(tuple(tensor.shape[1:]) for tensor in tensors) for key, tensors in passed.items()}
        call.entered.append(Entered(shapes, borrowed))
        if call.count == 1:
            nodes = [_graph_node(tensor) for tensors in passed.values() for tensor in tensors]
            call.input_nodes = frozenset(node for node in nodes if node is not None)

    def leave(module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        call = calls[names[module]]
        call.output_shapes.append(tuple(output.shape[1:]) if isinstance(output, Tensor) else None)
        call.output_node = _graph_node(output) if isinstance(output, Tensor) else None

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


def _sort_out(arguments: dict[str, Any], owned: dict[int, str]) -> tuple[dict[str, list[Tensor]], tuple[str, ...]]:
    """(tensors that come from the model's input by argument, names of the host's own tensors among the arguments)."""
    given = {key: flat_tensors(value) for key, value in arguments.items()}
    borrowed = [owned[id(tensor)] for tensors in given.values() for tensor in tensors if id(tensor) in owned]
    computed = [tensor for tensors in given.values() for tensor in tensors if id(tensor) not in owned]
    differentiable = any(tensor.requires_grad for tensor in computed)
    passed: dict[str, list[Tensor]] = {}
    seen = set(owned)
    for key, tensors in given.items():
        # Without a gradient beside those with one: a mask, a table. A tensor passed twice (query, key) counts once.
        fresh = [
            tensor for tensor in tensors if id(tensor) not in seen and (tensor.requires_grad or not differentiable)
        ]
        seen.update(map(id, fresh))
        if fresh:
            passed[key] = fresh
    return passed, tuple(borrowed)


def flat_tensors(value: object) -> list[Tensor]:
    """The tensors of an argument: itself, or those of a list or tuple."""
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []


def _graph_node(tensor: Tensor) -> Node | None:
    return get_gradient_edge(tensor).node if tensor.requires_grad else None
