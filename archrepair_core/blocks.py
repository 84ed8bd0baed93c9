"""The parts of a model that can be replaced as one: blocks, and the stages made of them.

Read `find_blocks` first. What counts as a block is read off one forward pass (who calls whom, with what) and off its
autograd graph (what can be bypassed), never off class names: rebuilt TorchScript modules carry any name at all.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from archrepair_core.cost import count_macs, latency_shares
from archrepair_core.errors import ModelError, SpecError
from archrepair_core.modes import eval_mode

Level = Literal["block", "stage"]

# Two images show the structure of a model as well as sixty-four, and one would hide a mistaken batch dimension.
STRUCTURE_BATCH = 2


@dataclass(frozen=True)
class Block:
    """A single-input single-output module called once per forward; a `stage` holds two or more blocks.

    Shapes are without the batch dimension, `macs` per image, `latency_share` the measured part (0–1) of the host's
    forward, `depth` the position in execution order among all blocks and stages of the host.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    num_params: int
    macs: int
    latency_share: float
    depth: int
    level: Level


@dataclass
class Call:
    """What one forward pass did with a module. The last four fields are None unless it took and gave one tensor."""

    module: nn.Module
    order: int
    count: int = 0
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    # Positions in the autograd graph, taken during the pass: later in-place operations move a tensor's grad_fn.
    input_node: Node | None = None
    output_node: Node | None = None

    @property
    def replaceable(self) -> bool:
        """Called once with one tensor and nothing else, gave one tensor, has weights to train.

        `requires_grad` is not asked: it tells how the last training was set up, not what the module is.
        """
        one_to_one = self.count == 1 and self.input_shape is not None and self.output_shape is not None
        return one_to_one and any(parameter.is_floating_point() for parameter in self.module.parameters())

    @property
    def weighted(self) -> bool:
        """Owns a weight matrix or kernel itself: a convolution, a linear layer, an attention projection."""
        return any(parameter.ndim >= 2 for parameter in self.module.parameters(recurse=False))


def find_blocks(model: nn.Module, inputs: Tensor) -> list[Block]:
    """Blocks and stages in execution order; `inputs` is a batch the model accepts.

    Blocks are the smallest composite modules that repeat or that hide a bypass (residual, parallel branches); a model
    without such modules (VGG, a plain CNN) yields its layers with weights. Raises `model.no_repairable_block`.
    """
    calls = trace_calls(model, inputs)
    names, stages = _composite_blocks(calls) or _layers(calls)
    if not names:
        raise ModelError(
            "no_repairable_block",
            f"none of the {len(calls) - 1} submodules that {type(model).__name__} calls takes one tensor, gives one "
            "tensor, runs once and has weights",
            hint="Only models with layers or blocks that map one tensor to one tensor can be repaired.",
        )
    levels: dict[str, Level] = {**dict.fromkeys(stages, "stage"), **dict.fromkeys(names, "block")}
    return _describe(model, inputs, calls, levels)


def replace_block_(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` where block `name` was, in place, and return the old module.

    Nothing else is touched: same parameter objects, same state_dict keys, and `new` keeps its own train/eval flags.
    Raises `spec.unknown_block` for a name the model does not have.
    """
    known = [known_name for known_name, _ in model.named_modules(remove_duplicate=False) if known_name]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise SpecError(
            "unknown_block",
            f"the model has no module named {name!r}",
            hint=f"Did you mean {' or '.join(close)}?" if close else f"Its modules are: {', '.join(known[:20])}.",
        )
    old = model.get_submodule(name)
    model.set_submodule(name, new)
    return old


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

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = calls.setdefault(names[module], Call(module, order=len(calls)))
        call.count += 1
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            call.input_shape, call.input_node = tuple(args[0].shape[1:]), _graph_node(args[0])

    def leave(module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        if isinstance(output, Tensor):
            call = calls[names[module]]
            call.output_shape, call.output_node = tuple(output.shape[1:]), _graph_node(output)

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _graph_node(tensor: Tensor) -> Node | None:
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


def _in_series(host: Call, part: Call) -> bool:
    """Whether all that flows from the input of `host` to its output passes through `part`: nothing bypasses it."""
    if host.output_node is None or part.output_node is None:
        return False
    ahead, seen = [host.output_node], {part.output_node}
    while ahead:
        node = ahead.pop()
        if node is host.input_node:
            return False
        if node not in seen:
            seen.add(node)
            ahead.extend(source for source, _ in node.next_functions if source is not None)
    return True


def _inside(name: str, host: str) -> bool:
    return name != host and (host == "" or name.startswith(f"{host}."))


def _outermost(names: Iterable[str], host: str) -> list[str]:
    within = [name for name in names if _inside(name, host)]
    return [name for name in within if not any(_inside(name, other) for other in within)]


def _weighted_parts(calls: dict[str, Call], host: str) -> list[str]:
    return [name for name, call in calls.items() if call.weighted and (name == host or _inside(name, host))]


def _kind(module: nn.Module) -> tuple[str, ...]:
    """What siblings of one kind share: the class name, and for a plain Sequential what it is a sequence of."""
    name = type(module).__name__
    return (name, *(type(child).__name__ for child in module.children())) if name == "Sequential" else (name,)


def _composite_blocks(calls: dict[str, Call]) -> tuple[list[str], list[str]] | None:
    """(blocks, stages), or None for a flat model: one whose composites neither repeat nor hide a bypass."""
    composites = {
        name: call
        for name, call in calls.items()
        if name and call.replaceable and len(_weighted_parts(calls, name)) >= 2
    }
    blocks, stages = _group(calls, composites, host="")
    kinds = Counter(_kind(composites[name].module) for name in blocks)
    true_blocks = [name for name in blocks if kinds[_kind(composites[name].module)] > 1 or _has_bypass(calls, name)]
    return (blocks, stages) if true_blocks else None


def _group(calls: dict[str, Call], composites: dict[str, Call], *, host: str) -> tuple[list[str], list[str]]:
    """(blocks, stages) strictly inside `host`.

    Inside a composite only parts in series can be blocks of their own: the branches of an Inception module, or the
    attention and MLP around which an encoder block adds its residuals, make sense only together.
    """
    blocks: list[str] = []
    stages: list[str] = []
    parts = _outermost(composites, host)
    if host:
        parts = [part for part in parts if _in_series(calls[host], calls[part])]
    for part in parts:
        inner_blocks, inner_stages = _group(calls, composites, host=part)
        if len(inner_blocks) >= 2:
            # A wrapper around one stage is the same candidate again.
            wraps_stage = _blocks_in(inner_blocks, inner_stages[:1]) == inner_blocks
            stages += inner_stages if wraps_stage else [part, *inner_stages]
            blocks += inner_blocks
        else:
            blocks += inner_blocks if inner_blocks and not _absorbs(composites, part, inner_blocks[0]) else [part]
    return blocks, stages


def _blocks_in(blocks: list[str], hosts: list[str]) -> list[str]:
    return [block for block in blocks if any(_inside(block, host) for host in hosts)]


def _absorbs(composites: dict[str, Call], outer: str, inner: str) -> bool:
    """Whether `outer` is the block and `inner`, the only one in it, its body; else `outer` is just a wrapper."""
    kinds = Counter(_kind(call.module) for call in composites.values())
    outer_module, inner_module = composites[outer].module, composites[inner].module
    if kinds[_kind(outer_module)] < kinds[_kind(inner_module)]:
        return False
    return kinds[_kind(outer_module)] > 1 or _num_params(outer_module) == _num_params(inner_module)


def _has_bypass(calls: dict[str, Call], name: str) -> bool:
    parts = [part for part in _weighted_parts(calls, name) if part != name and calls[part].output_node is not None]
    return any(not _in_series(calls[name], calls[part]) for part in parts)


def _layers(calls: dict[str, Call]) -> tuple[list[str], list[str]]:
    """(single layers with weights, the composites that hold two or more of them): the blocks of a flat model."""
    layers = [
        name
        for name, call in calls.items()
        if name and call.replaceable and call.weighted and _weighted_parts(calls, name) == [name]
    ]
    groups = [name for name, call in calls.items() if name and call.replaceable and name not in layers]
    return layers, [name for name in groups if len(_blocks_in(layers, [name])) >= 2]


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _describe(model: nn.Module, inputs: Tensor, calls: dict[str, Call], levels: dict[str, Level]) -> list[Block]:
    macs = count_macs(model, inputs)
    shares = latency_shares(model, inputs, levels)
    return [
        Block(
            name=name,
            kind=type(calls[name].module).__name__,
            input_shape=calls[name].input_shape or (),
            output_shape=calls[name].output_shape or (),
            num_params=_num_params(calls[name].module),
            macs=macs[name],
            latency_share=shares[name],
            depth=depth,
            level=levels[name],
        )
        for depth, name in enumerate(sorted(levels, key=lambda name: calls[name].order))
    ]
