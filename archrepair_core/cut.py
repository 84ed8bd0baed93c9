"""Split a live model at a block, so that what lies before it is computed once and only the rest is trained."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from archrepair_core.calls import Call, trace_calls
from archrepair_core.errors import EngineError
from archrepair_core.ingest.outputs import tensors_in
from archrepair_core.interface import read_logits
from archrepair_core.modes import eval_mode
from archrepair_core.packing import Packing, Unpackable, packing_of
from archrepair_core.slicing import Rest, Unsliceable, rests_after


@dataclass(frozen=True)
class Cut:
    """A model in two halves: `tail(prefix(x))` is `model(x)`.

    `prefix` gives all the rest needs, one row per input, and computes nothing behind the cut: the tensor entering block
    `name`, or [N, D] where there are several. `tail` runs the block and the rest on the live model (a replaced block,
    train/eval flags, gradients) and leaves its input as it was.
    """

    name: str
    prefix: Callable[[Tensor], Tensor]
    tail: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NoCut:
    """Why the model cannot be cut at block `name`: it then trains as a whole."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Step:
    """One method on the way from the block back to the root, and what it does once the one inside has answered."""

    name: str
    module: nn.Module
    rest: Rest


class _BlockReached(Exception):
    """Carries what a forward knows when it calls the block out of it: it need not go on."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.known = known


def cut_at(model: nn.Module, name: str, inputs: Tensor) -> Cut | NoCut:
    """Cut `model` at block `name`, checked bit for bit in eval mode on `inputs` and on fewer of them.

    No cut when the rest needs what is neither per input nor constant, when its source cannot be read, when the block
    runs twice, or when the check fails: then train on the whole model.
    """
    calls = trace_calls(model, inputs)
    if name not in calls or not name:
        return NoCut(name, "the model's forward does not call it")
    if calls[name].count != 1:
        return NoCut(name, f"it runs {calls[name].count} times in one forward")
    try:
        steps = _steps_to(name, calls)
        packing = _packing(model, name, steps, inputs)
    except (Unsliceable, Unpackable) as error:
        return NoCut(name, str(error))
    prefix = _make_prefix(model, name, steps, packing)
    for copies in (False, True):
        cut = Cut(name, prefix, _make_tail(model, name, steps, packing, copies=copies))
        if _reproduces(cut, model, inputs):
            return cut
    return NoCut(name, "its two halves do not give what the whole gives")


def _steps_to(name: str, calls: dict[str, Call]) -> list[_Step]:
    """The methods that call one another from the root to the block, innermost first. Raises Unsliceable."""
    # Containers that only hold modules (ModuleList) are never called and are no step.
    path = [host for host in _ancestors(name) if host in calls] + [name]
    return [
        _Step(host, calls[host].module, rest)
        for host, child in reversed(list(pairwise(path)))
        for rest in rests_after(calls[host].module, calls[child].module)
    ]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts))]


def _packing(model: nn.Module, name: str, steps: Sequence[_Step], inputs: Tensor) -> Packing:
    """How to pack what the rest needs; other inputs, and fewer, must not change it. Raises Unpackable."""
    with eval_mode(model), torch.no_grad():
        packing = packing_of(_known_at(model, name, steps, inputs.clone()), len(inputs), model)
        if len(inputs) > 1:
            packing.pack(_known_at(model, name, steps, inputs[1:].clone()), len(inputs) - 1)
    return packing


def _known_at(model: nn.Module, name: str, steps: Sequence[_Step], inputs: Tensor) -> Any:
    """What the forward knows when it calls the block: the block's arguments and, step by step, the locals kept."""

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _BlockReached((args, kwargs, _kept_locals(steps, inspect.currentframe())))

    # First of all hooks: one that changes what enters must run once, in the tail.
    handle = model.get_submodule(name).register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    try:
        model(inputs)
    except _BlockReached as reached:
        return reached.known
    finally:
        handle.remove()
    raise EngineError("block_not_reached", f"the model's forward no longer calls block {name!r}")


def _kept_locals(steps: Sequence[_Step], frame: FrameType | None) -> list[dict[str, Any]]:
    """The locals each step needs, read in the frames of the methods that are being run: they call one another."""
    kept: list[dict[str, Any]] = []
    for step in steps:
        while step.rest.needs and not _runs(frame, step):
            assert frame is not None, f"{step.name!r} is not among the callers of the block it calls"
            frame = frame.f_back
        known = frame.f_locals if frame is not None and step.rest.needs else {}
        kept.append({need: known[need] for need in step.rest.needs})
    return kept


def _runs(frame: FrameType | None, step: _Step) -> bool:
    if frame is None or frame.f_code is not step.rest.code:
        return False
    return frame.f_locals[frame.f_code.co_varnames[0]] is step.module


def _make_prefix(model: nn.Module, name: str, steps: Sequence[_Step], packing: Packing) -> Callable[[Tensor], Tensor]:
    def prefix(inputs: Tensor) -> Tensor:
        try:
            return packing.pack(_known_at(model, name, steps, inputs), len(inputs))
        except Unpackable as error:
            raise EngineError("stale_cut", f"{error}: the model was cut at {name!r} for other inputs") from error

    return prefix


def _make_tail(
    model: nn.Module, name: str, steps: Sequence[_Step], packing: Packing, *, copies: bool
) -> Callable[[Tensor], Tensor]:
    """`copies` is for blocks that begin with an in-place operation: it would wear a cached activation away."""

    def tail(entering: Tensor) -> Any:
        replaced = [step.name for step in steps if model.get_submodule(step.name) is not step.module]
        if replaced:
            raise EngineError("stale_cut", f"{replaced[0]!r} was replaced after the model was cut at {name!r}")
        args, kwargs, kept = packing.unpack(entering.clone() if copies else entering, model)
        answer = model.get_submodule(name)(*args, **kwargs)
        for step, known in zip(steps, kept, strict=True):
            answer = step.rest.run(step.module, answer, known)
        return read_logits(model, answer)

    return tail


def _reproduces(cut: Cut, model: nn.Module, inputs: Tensor) -> bool:
    with eval_mode(model), torch.no_grad():
        expected = model(inputs.clone())
        entering = cut.prefix(inputs.clone())
        kept = entering.clone()
        # Something else passes in between: a forward that leaves notes on its modules for later must not pass.
        cut.prefix(torch.rand_like(inputs) if inputs.is_floating_point() else inputs.flip(0))
        found = cut.tail(entering)
    return same_bits(found, expected) and torch.equal(entering, kept)


def same_bits(found: Any, expected: Any) -> bool:
    """Whether two answers of a model hold the same tensors, however nested."""
    ours, theirs = tensors_in(found), tensors_in(expected)
    return bool(theirs) and ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
