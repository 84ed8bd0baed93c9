"""What is known while a class or a function of an archive is written: names, values, what could not be written."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from archrepair_core.ingest.annotations import same_type
from archrepair_core.ingest.graphs import Value
from archrepair_core.ingest.operators import annotated
from archrepair_core.ingest.syntax import is_identifier, is_reserved, name


@dataclass
class Scope:
    """What the methods of one class share while they are written, and what they turn out to need."""

    path: str
    function_name: Callable[[str, "Scope"], str]
    method_alias: Callable[[str, str], str]
    written_attributes: frozenset[str] = frozenset()
    attribute_types: dict[str, Any] = field(default_factory=dict)
    # Attributes that list tensors which the module also holds under a name of their own.
    tensor_lists: dict[str, list[str]] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    is_method: bool = True

    def report(self, problem: str) -> None:
        """Note what cannot be written, and where; all of it is told at once."""
        self.problems.append(f"{problem} in {self.path or 'the model itself'}")


@dataclass
class Body:
    """One function while it is written: `values` maps each IR value to the expression that reads it."""

    scope: Scope
    scalars: frozenset[str]
    device_source: ast.expr | None = None
    values: dict[str, ast.expr] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)

    def fresh(self, hint: str) -> str:
        """A local name near `hint` that is free in this function and hides nothing."""
        plain = re.sub(r"\.\d+$", "", hint)
        stem = f"v{plain}" if plain.isdigit() else plain
        if is_identifier(stem) and is_reserved(stem):
            stem = f"{stem}_"
        if not is_identifier(stem) or is_reserved(stem):
            stem = "v_" + re.sub(r"\W|[^\x00-\x7f]", "_", stem)
        candidate = stem
        while candidate in self.taken:
            # Counting on from where the last one stopped: traces have thousands of values of one name.
            self.counts[stem] = self.counts.get(stem, 0) + 1
            candidate = f"{stem}_{self.counts[stem]}"
        self.taken.add(candidate)
        return candidate

    def bind(self, value: Value) -> str:
        """A new local that holds `value` from now on."""
        local = self.fresh(value.debugName())
        self.values[value.debugName()] = name(local)
        return local

    def read(self, value: Value) -> ast.expr:
        """The expression that reads a value written before."""
        return self.values[value.debugName()]

    def read_as(self, value: Value, jit_type: Any) -> ast.expr:
        """`value` where a wider type is expected: annotated, so that TorchScript gives it that type."""
        expression = self.read(value)
        return expression if same_type(value.type(), jit_type) else annotated(expression, jit_type)
