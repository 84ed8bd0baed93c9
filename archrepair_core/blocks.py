"""The parts of a model that can be replaced as one: blocks, and the stages made of them.

Read `find_blocks` first. What counts as a block is read off one forward pass (who calls whom, with what) and off its
autograd graph (what can be bypassed), never off class names: rebuilt TorchScript modules carry any name at all.
"""

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from archrepair_core.calls import Call, trace_calls
from archrepair_core.cost import count_macs, latency_shares
from archrepair_core.errors import ModelError, SpecError

Level = Literal["block", "stage"]

# A block that was repaired with a branch holds these two and nothing else (search/branches.py), in any archive of ours.
CELL_PARTS = {"original", "branch"}
# One that a cell replaced holds only a branch, and that these.
REPLACED_PARTS, BRANCH_PARTS = {"branch"}, {"operation", "scale"}


@dataclass(frozen=True)
class Block:
    """A module that can be replaced as one: one tensor comes out; `stage`: it holds two or more blocks.

    What goes in is one tensor, or several `arguments` that count as concatenated over channels. Shapes are without
    batch, `macs` per image, `latency_share` is the measured part (0–1) of the forward, `depth` the place in execution
    order, `borrowed` the host's tensors it computes with.
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
    arguments: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()

    @property
    def scope(self) -> tuple[str, ...]:
        """What trains when this block trains: names of modules and tensors of the host."""
        # A run owns no weights and is not put in train mode: its batch-norms are operators and would forget.
        return (*self.borrowed, f"{self.name}.branch") if self.borrowed else (self.name,)


def find_blocks(model: nn.Module, inputs: Tensor) -> list[Block]:
    """Blocks and stages in execution order; `inputs` is a batch the model accepts.

    Blocks are the smallest composite modules that repeat or that hide a bypass (residual, parallel branches); a model
    without such modules (VGG, a plain CNN) yields its layers with weights. Raises `model.no_repairable_block`.
    """
    calls = trace_calls(model, inputs)
    seen = _without_branches(calls)
    names, stages = _composite_blocks(seen) or _layers(seen)
    if not names:
        raise _no_block(model, calls)
    levels: dict[str, Level] = {**dict.fromkeys(stages, "stage"), **dict.fromkeys(names, "block")}
    return _describe(model, inputs, calls, levels)


def describe_layer(model: nn.Module, inputs: Tensor, name: str) -> Block | None:
    """One layer as a block of its own, None where nothing else can stand in its place."""
    calls = trace_calls(model, inputs)
    if name not in calls or not calls[name].replaceable:
        return None
    return _describe(model, inputs, calls, {name: "block"})[0]


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


def _no_block(model: nn.Module, calls: dict[str, Call]) -> ModelError:
    refused = [f"{name} {call.refusal}" for name, call in calls.items() if name and _holds_weights(call.module)]
    reasons = f": {'; '.join(refused[:5])}{' …' if len(refused) > 5 else ''}" if refused else ""
    return ModelError(
        "no_repairable_block",
        f"none of the {len(calls) - 1} submodules that {type(model).__name__} calls takes tensors that fit together, "
        f"gives one tensor and has weights{reasons}",
        hint="Only models with layers or blocks that map tensors to one tensor can be repaired.",
    )


def _holds_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _without_branches(calls: dict[str, Call]) -> dict[str, Call]:
    """The calls as they were before any block got a branch: a repaired block counts as what its original is."""
    cells = [name for name, call in calls.items() if name and set(call.module._modules) == CELL_PARTS]
    replaced = [name for name, call in calls.items() if name and _is_replaced(call.module)]
    branches = [f"{cell}.branch" for cell in [*cells, *replaced]]
    ends = (calls[branch].output_node for branch in branches if branch in calls)
    hidden = frozenset(node for node in ends if node is not None)
    kept = {
        name: replace(call, hidden_nodes=hidden)
        for name, call in calls.items()
        if not any(name == branch or _inside(name, branch) for branch in branches)
    }
    for cell in set(replaced) & kept.keys():
        kept[cell] = replace(kept[cell], is_cell=True)
    for cell in cells:
        module = calls[cell].module
        while set(module._modules) == CELL_PARTS:
            module = module.get_submodule("original")
        if cell in kept:
            kept[cell] = replace(kept[cell], module=module, is_cell=_is_replaced(module))
            kept.pop(f"{cell}.original", None)
    return kept


def _is_replaced(module: nn.Module) -> bool:
    branch = module._modules.get("branch")
    return (
        set(module._modules) == REPLACED_PARTS
        and branch is not None
        and {*branch._modules, *branch._parameters} == BRANCH_PARTS
    )


def _in_series(host: Call, part: Call) -> bool:
    """Whether all that flows from the input of `host` to its output passes through `part`: nothing bypasses it."""
    if host.output_node is None or part.output_node is None:
        return False
    ahead, seen = [host.output_node], {part.output_node, *host.hidden_nodes}
    while ahead:
        node = ahead.pop()
        if node in host.input_nodes:
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
    parts = {name: len(_weighted_parts(calls, name)) for name, call in calls.items() if name and call.replaceable}
    kinds = {_kind(calls[name].module) for name, count in parts.items() if count >= 2}
    # A sibling may be slimmer: EfficientNetV2's first blocks have a single convolution.
    composites = {
        name: calls[name]
        for name, count in parts.items()
        if count and (_kind(calls[name].module) in kinds or calls[name].is_cell)
    }
    blocks, stages = _group(_Composites(calls, composites), host="")
    repeats = Counter(_kind(composites[name].module) for name in blocks if not calls[name].is_cell)
    true = {name for name in blocks if repeats[_kind(composites[name].module)] > 1 or _has_bypass(calls, name)}
    if not true:
        return None
    ends = _first_and_last_layer(calls)
    return [name for name in blocks if name in true or not any(_inside(layer, name) for layer in ends)], stages


def _first_and_last_layer(calls: dict[str, Call]) -> tuple[str, str]:
    """Where stem and head are. A plain sequence there is no block, as little as the single layer it stands for."""
    layers = sorted(_weighted_parts(calls, ""), key=lambda name: calls[name].order)
    return layers[0], layers[-1]


class _Composites:
    """The candidates of a model and how they stand to one another.

    Inside a composite only parts in series can be blocks of their own: the branches of an Inception module, the
    attention and MLP of an encoder block make sense only together. They stand aside, and what stands aside in one place
    is a mere part in all (the gate of a mobile block without a residual).
    """

    def __init__(self, calls: dict[str, Call], composites: dict[str, Call]) -> None:
        self.calls = composites
        self.in_series: dict[str, list[str]] = {"": _outermost(composites, "")}
        self.kinds = Counter(_kind(call.module) for call in composites.values())
        self.part_kinds: set[tuple[str, ...]] = set()
        for host in composites:
            parts = _outermost(composites, host)
            dense = _densely_connected(calls, parts)
            self.in_series[host] = [part for part in parts if part in dense or _in_series(calls[host], calls[part])]
            self.part_kinds |= {self.kind(part) for part in parts if part not in self.in_series[host]}

    def kind(self, name: str) -> tuple[str, ...]:
        """What siblings of one kind share (`_kind`)."""
        return _kind(self.calls[name].module)

    def absorbs(self, outer: str, inner: str) -> bool:
        """Whether `outer` is the block and `inner`, the only one in it, its body; else `outer` is just a wrapper."""
        if self.kind(inner) in self.part_kinds:
            return True
        if self.kind(outer)[0] == "Sequential" and len(self.calls[outer].module) == 1:  # type: ignore[arg-type]
            return False
        if self.kinds[self.kind(outer)] < self.kinds[self.kind(inner)]:
            return False
        same_size = _num_params(self.calls[outer].module) == _num_params(self.calls[inner].module)
        return self.kinds[self.kind(outer)] > 1 or same_size


def _group(composites: _Composites, *, host: str) -> tuple[list[str], list[str]]:
    """(blocks, stages) strictly inside `host`."""
    blocks: list[str] = []
    stages: list[str] = []
    for part in composites.in_series[host]:
        inner_blocks, inner_stages = _group(composites, host=part)
        if len(inner_blocks) >= 2:
            # A wrapper around one stage is the same candidate again.
            wraps_stage = _blocks_in(inner_blocks, inner_stages[:1]) == inner_blocks
            stages += inner_stages if wraps_stage else [part, *inner_stages]
            blocks += inner_blocks
        else:
            blocks += inner_blocks if inner_blocks and not composites.absorbs(part, inner_blocks[0]) else [part]
    return blocks, stages


def _densely_connected(calls: dict[str, Call], parts: list[str]) -> set[str]:
    """Parts that take the answer of the one before them among several tensors (Huang et al., CVPR 2017)."""
    ordered = sorted(parts, key=lambda part: calls[part].order)
    pairs = [
        pair
        for pair in pairwise(ordered)
        if len(calls[pair[1]].input_nodes) > 1 and calls[pair[0]].output_node in calls[pair[1]].input_nodes
    ]
    return {part for pair in pairs for part in pair}


def _blocks_in(blocks: list[str], hosts: list[str]) -> list[str]:
    return [block for block in blocks if any(_inside(block, host) for host in hosts)]


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
    borrowable = dict(model.named_parameters())
    return [
        Block(
            name=name,
            kind=type(calls[name].module).__name__,
            input_shape=calls[name].input_shape or (),
            output_shape=calls[name].output_shape or (),
            num_params=_num_params(calls[name].module)
            + sum(borrowable[key].numel() for key in calls[name].entered[0].borrowed if key in borrowable),
            macs=macs[name],
            latency_share=shares[name],
            depth=depth,
            level=levels[name],
            arguments=tuple(calls[name].entered[0].shapes),
            borrowed=calls[name].entered[0].borrowed,
        )
        for depth, name in enumerate(sorted(levels, key=lambda name: calls[name].order))
    ]
