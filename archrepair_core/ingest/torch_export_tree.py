"""The calls of modules inside a program: a flat list of steps becomes the tree that ran when it was recorded.

Each step remembers the calls around it. Steps are never reordered, so a call is a run of neighbours, and what it takes
and gives is read off which values cross its borders.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archrepair_core.ingest.torch_export_batch import MARK, Batch, Shaped, used_names
from archrepair_core.ingest.torch_export_graph import Step, names_in
from archrepair_core.ingest.torch_export_program import Program, Scope


@dataclass(frozen=True)
class Line:
    """A step with its batch sizes named, as the generated source will have it."""

    step: Step
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of the module at `path`: what it does in order, the values it takes and those it gives."""

    path: str
    class_name: str
    items: tuple["Line | Call", ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def calls(self) -> Iterator["Call"]:
        """This call and all those inside it."""
        yield self
        for item in self.items:
            if isinstance(item, Call):
                yield from item.calls()


@dataclass
class _Flow:
    """Where values come from and are needed: `paths` are the names of tensors of the model, by value name."""

    lines: list[Line]
    paths: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, Any]
    last_use: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)


def call_tree(program: Program, steps: Sequence[Step], shaped: Shaped, paths: Mapping[str, tuple[str, ...]]) -> Call:
    """The call of the model itself. `paths` gives all names of each tensor of the model, constants none."""
    lines = _without_dead_sizes(program, [Line(*pair) for pair in zip(steps, shaped.arguments, strict=True)])
    flow = _Flow(lines, paths, shaped.shapes)
    for index, line in enumerate(lines):
        flow.made.update(dict.fromkeys(line.step.operation.outputs, index))
        flow.last_use.update(dict.fromkeys(used_names(line.arguments), index))
    kept = {*names_in(program.outputs), *(name for name, _ in program.mutations)}
    flow.last_use.update(dict.fromkeys(kept, len(lines)))
    chains = [_chain(line, paths) for line in lines]
    root_class = next((line.step.operation.scopes[0].class_name for line in lines if line.step.operation.scopes), "")
    items = _items(flow, chains, range(len(lines)), depth=0)
    inputs = tuple(item.name for item in program.inputs if item.kind == "tensor")
    return Call("", root_class, items, inputs, tuple(names_in(program.outputs)))


def _without_dead_sizes(program: Program, lines: list[Line]) -> list[Line]:
    """Sizes that have been named otherwise are not computed."""
    needed = {*names_in(program.outputs), *(name for name, _ in program.mutations)}
    alive = []
    for line in reversed(lines):
        is_size = line.step.schema is None or line.step.kind.startswith("sym_")
        if is_size and not needed & set(line.step.operation.outputs):
            continue
        needed.update(used_names(line.arguments))
        alive.append(line)
    return alive[::-1]


def _chain(line: Line, paths: Mapping[str, tuple[str, ...]]) -> list[Scope]:
    """The calls around a step, each inside the one before and the last one holding every tensor the step uses."""
    chain: list[Scope] = []
    for scope in line.step.operation.scopes[1:]:
        above = chain[-1].path if chain else ""
        if scope.path == above or not _is_inside(scope.path, above):
            break
        chain.append(scope)
    used = [paths[name] for name in used_names(line.arguments) if paths.get(name)]
    while chain and not all(any(_is_inside(path, chain[-1].path) for path in names) for names in used):
        chain.pop()
    return chain


def _is_inside(path: str, owner: str) -> bool:
    return not owner or path.startswith(f"{owner}.")


def _items(flow: _Flow, chains: list[list[Scope]], span: Sequence[int], *, depth: int) -> tuple[Line | Call, ...]:
    items: list[Line | Call] = []
    grouped = itertools.groupby(span, lambda index: chains[index][depth].key if len(chains[index]) > depth else None)
    for key, group in grouped:
        indices = list(group)
        if key is None:
            items += [flow.lines[index] for index in indices]
            continue
        inner = _items(flow, chains, indices, depth=depth + 1)
        scope = chains[indices[0]][depth]
        inputs, outputs = _borders(flow, indices)
        call = Call(scope.path, scope.class_name, inner, inputs, outputs)
        # What cannot be a call of its own is done by the caller.
        items += [call] if _stands_alone(flow, indices, call) else inner
    return tuple(items)


def _borders(flow: _Flow, indices: list[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first, last = indices[0], indices[-1]
    used = [name for index in indices for name in used_names(flow.lines[index].arguments)]
    taken = [name for name in dict.fromkeys(used) if name not in flow.paths and flow.made.get(name, -1) < first]
    made = [name for index in indices for name in flow.lines[index].step.operation.outputs]
    return tuple(taken), tuple(name for name in made if flow.last_use.get(name, -1) > last)


def _stands_alone(flow: _Flow, indices: list[int], call: Call) -> bool:
    needs_batch = any(_has_batch(flow.lines[index].arguments) for index in indices)
    return bool(call.outputs) and bool(call.inputs) and (not needs_batch or has_batch(call.inputs, flow.shapes))


def _has_batch(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_batch, value.values()))
    return any(map(_has_batch, value)) if isinstance(value, list) else isinstance(value, Batch)


def has_batch(names: Sequence[str], shapes: Mapping[str, Any]) -> bool:
    """Whether the batch size can be read off one of these values."""
    return any(isinstance(shapes[name], tuple) and any(s and s % MARK == 0 for s in shapes[name]) for name in names)
