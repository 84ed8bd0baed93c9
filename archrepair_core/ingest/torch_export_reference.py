"""The program of a .pt2 file as a module that answers exactly as the file does, one operator after the other.

Nothing is rewritten here and nothing shared with the generated code: this is what the editable twin is held against.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.torch_export_graph import Step, last_uses, names_in, run
from archrepair_core.ingest.torch_export_program import Program, Ref, Tree
from archrepair_core.ingest.torch_export_root import argument_trees, tuple_class, user_inputs


class ExportedModel(nn.Module):
    """Runs the program's steps. With a `fixed_batch` it takes any batch, and runs it in pieces of the recorded size."""

    def __init__(
        self, program: Program, steps: list[Step], tensors: Mapping[str, Tensor], fixed_batch: int = 0
    ) -> None:
        super().__init__()
        self._program = program
        self._steps = steps
        self._fixed_batch = fixed_batch
        self._dying = last_uses(steps, set(names_in(program.outputs)) | {name for name, _ in program.mutations})
        for item in program.inputs:
            if item.kind in ("parameter", "buffer", "constant"):
                attach(self, item.target, tensors[item.target], persistent=item.persistent and item.kind != "constant")

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """What each tensor argument was in the example the program was recorded with, without the batch."""
        return tuple(tuple(dimension.size for dimension in shape[1:]) for shape in self._program.input_shapes.values())

    def forward(self, *arguments: Any) -> Any:
        """The file's answer; arguments as the exported model's forward takes them."""
        flat = flatten(arguments, self._program)
        size = self._fixed_batch
        if not size:
            return build(iter(self._run(flat)), self._program.out_tree)
        batch = next(len(item) for item in flat if isinstance(item, Tensor))
        pieces = [self._run([_piece(item, start, size) for item in flat]) for start in range(0, batch, size)]
        joined = (_join([piece[i] for piece in pieces], batch, size) for i in range(len(pieces[0])))
        return build(joined, self._program.out_tree)

    def _run(self, flat: list[Any]) -> list[Any]:
        values: dict[str, Any] = {}
        given = iter(flat)
        for item in self._program.inputs:
            if item.kind in ("parameter", "buffer", "constant"):
                values[item.name] = attached(self, item.target)
            else:
                values[item.name] = next(given) if item.kind == "tensor" else item.value
                if item.kind == "literal":
                    next(given)
        device = next((value.device for value in values.values() if isinstance(value, Tensor)), torch.device("cpu"))
        for step, dying in zip(self._steps, self._dying, strict=True):
            run(step, values, device=device)
            for name in dying:
                values.pop(name, None)
        for name, buffer in self._program.mutations:
            attached(self, buffer).copy_(values[name])
        return [values[output.name] if isinstance(output, Ref) else output for output in self._program.outputs]


def make_reference(
    program: Program, steps: list[Step], tensors: Mapping[str, Tensor], *, fixed_batch: int = 0
) -> ExportedModel:
    """An `ExportedModel` whose `forward` has the argument names of the exported model."""
    names = program.arguments
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])

    def forward(self: ExportedModel, *arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(self, *arguments, **keywords)
        return ExportedModel.forward(*bound.args)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    made = type("ExportedModel", (ExportedModel,), {"forward": forward})
    return made(program, steps, tensors, fixed_batch).eval()


def attach(root: nn.Module, path: str, tensor: Tensor, *, persistent: bool) -> None:
    """Give `root` a parameter or buffer under a dotted path, with plain modules where there are none yet."""
    *parents, last = path.split(".")
    owner = root
    for parent in parents:
        if parent not in owner._modules:
            owner._modules[parent] = nn.Module()
        owner = owner.get_submodule(parent)
    if isinstance(tensor, nn.Parameter):
        owner._parameters[last] = tensor
        return
    owner._buffers[last] = tensor
    if not persistent:
        owner._non_persistent_buffers_set.add(last)


def attached(root: nn.Module, path: str) -> Any:
    """The parameter or buffer under a dotted path."""
    owner, _, last = path.rpartition(".")
    return getattr(root.get_submodule(owner), last)


def flatten(arguments: tuple[Any, ...], program: Program) -> list[Any]:
    """The leaves of a call's arguments in the program's order; missing ones at the end are the literals recorded."""
    trees = argument_trees(program)
    literals = {i: item.value for i, item in enumerate(user_inputs(program)) if item.kind == "literal"}
    flat: list[Any] = []
    for position, tree in enumerate(trees):
        if position < len(arguments):
            flat += _leaves(arguments[position], tree)
        else:
            flat += [literals.get(len(flat) + offset) for offset in range(tree.num_leaves)]
    return flat


def _leaves(value: Any, tree: Tree) -> list[Any]:
    if tree.kind == "leaf":
        return [value]
    items = [value[key] for key in tree.keys] if tree.kind == "dict" else list(value)
    return [leaf for item, child in zip(items, tree.children, strict=True) for leaf in _leaves(item, child)]


def build(leaves: Iterator[Any], tree: Tree) -> Any:
    """An answer nested as the exported model nests it."""
    if tree.kind == "leaf":
        return next(leaves)
    items = [build(leaves, child) for child in tree.children]
    if tree.kind == "dict":
        return dict(zip(tree.keys, items, strict=True))
    if tree.kind == "namedtuple":
        return tuple_class(tree)(*items)
    return items if tree.kind == "list" else tuple(items)


def _piece(item: Any, start: int, size: int) -> Any:
    """Rows `start` to `start + size`; the last row again and again where there are fewer."""
    if not isinstance(item, Tensor) or item.dim() == 0:
        return item
    rows = torch.arange(start, start + size, device=item.device).clamp_max(len(item) - 1)
    return item[rows]


def _join(pieces: list[Any], batch: int, size: int) -> Any:
    if not isinstance(pieces[0], Tensor):
        return pieces[0]
    if pieces[0].dim() == 0 or len(pieces[0]) != size:
        detail = f"An output of shape {list(pieces[0].shape)} has no batch dimension of {size}."
        raise ModelError("fixed_batch_size", detail, hint="Export the model with a dynamic batch dimension.")
    return torch.cat(pieces)[:batch]
