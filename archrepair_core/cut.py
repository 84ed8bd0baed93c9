"""Split a live model at a block, so that what lies before it is computed once and only the rest is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from archrepair_core.blocks import Call, trace_calls
from archrepair_core.errors import EngineError
from archrepair_core.modes import eval_mode
from archrepair_core.slicing import Rest, Unsliceable, rest_after


@dataclass(frozen=True)
class Cut:
    """A model in two halves: `tail(prefix(x))` is `model(x)`.

    `prefix` gives the tensor entering block `name` and computes nothing behind it. `tail` runs the block and the rest
    on the live model (a replaced block, train/eval flags, gradients) and leaves its input as it was.
    """

    name: str
    prefix: Callable[[Tensor], Tensor]
    tail: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Step:
    """One module on the way from the root to the block, and what it does once the next one has answered."""

    name: str
    module: nn.Module
    rest: Rest


class _BlockReached(Exception):
    """Carries the tensor entering the block out of a forward that need not go on."""

    def __init__(self, entering: Tensor) -> None:
        super().__init__()
        self.entering = entering


def cut_at(model: nn.Module, name: str, inputs: Tensor) -> Cut | None:
    """Cut `model` at block `name`, checked bit for bit in eval mode on `inputs`.

    None when the rest of the model needs more than the block's output (a skip past it, an earlier shape), when its
    source cannot be read, or when the check fails: then train on the whole model.
    """
    calls = trace_calls(model, inputs)
    if name not in calls or not calls[name].replaceable:
        return None
    try:
        steps = _steps_to(name, calls)
    except Unsliceable:
        return None
    for tail in (_make_tail(model, name, steps), _make_tail(model, name, steps, copies=True)):
        cut = Cut(name, _make_prefix(model, name), tail)
        if _reproduces(cut, model, inputs):
            return cut
    return None


def _steps_to(name: str, calls: dict[str, Call]) -> list[_Step]:
    """The modules that call one another from the root to the block, innermost first. Raises Unsliceable."""
    # Containers that only hold modules (ModuleList) are never called and are no step.
    path = [host for host in _ancestors(name) if host in calls] + [name]
    return [
        _Step(host, calls[host].module, rest_after(calls[host].module, calls[child].module))
        for host, child in reversed(list(pairwise(path)))
    ]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts))]


def _make_prefix(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    def stop(_module: nn.Module, args: tuple[Any, ...]) -> NoReturn:
        raise _BlockReached(args[0])

    def prefix(inputs: Tensor) -> Tensor:
        # First of all hooks: one that changes what enters must run once, in the tail.
        handle = model.get_submodule(name).register_forward_pre_hook(stop, prepend=True)
        try:
            model(inputs)
        except _BlockReached as reached:
            return reached.entering
        finally:
            handle.remove()
        raise EngineError("block_not_reached", f"the model's forward no longer calls block {name!r}")

    return prefix


def _make_tail(model: nn.Module, name: str, steps: list[_Step], *, copies: bool = False) -> Callable[[Tensor], Tensor]:
    """`copies` is for blocks that begin with an in-place operation: it would wear a cached activation away."""

    def tail(entering: Tensor) -> Tensor:
        replaced = [step.name for step in steps if model.get_submodule(step.name) is not step.module]
        if replaced:
            raise EngineError("stale_cut", f"{replaced[0]!r} was replaced after the model was cut at {name!r}")
        answer = model.get_submodule(name)(entering.clone() if copies else entering)
        for step in steps:
            answer = step.rest(step.module, answer)
        return answer

    return tail


def _reproduces(cut: Cut, model: nn.Module, inputs: Tensor) -> bool:
    with eval_mode(model), torch.no_grad():
        expected = model(inputs.clone())
        entering = cut.prefix(inputs.clone())
        kept = entering.clone()
        # Something else passes in between: a forward that leaves notes on its modules for later must not pass.
        cut.prefix(torch.rand_like(inputs))
        found = cut.tail(entering)
    same_output = isinstance(expected, Tensor) and isinstance(found, Tensor) and torch.equal(found, expected)
    return same_output and torch.equal(entering, kept)
