"""Genotype: what a search found, as plain data that can be stored, compared and built again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from archrepair_core.blocks import Block, replace_block_
from archrepair_core.errors import EngineError
from archrepair_core.scope import Scope
from archrepair_core.search.branches import BlockReplaced, BlockWithBranch, build_branch, with_branch
from archrepair_core.search.dag import INPUT_NODE, OUTPUT_NODE, Edge, in_order
from archrepair_core.search.operations import ORIGINAL

MAX_NAMED = 3
Start = Literal["original", "re-estimated", "aligned"]
_ORIGINAL_EDGE = Edge(INPUT_NODE, OUTPUT_NODE, ORIGINAL)


@dataclass(frozen=True)
class Edit:
    """A cell in the place of a block: a graph of operations from `input` over numbered nodes to `output`.

    The original block may stay as one of them, on the edge from input to output. Every node sums its incoming edges.
    """

    block: str
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        """Put the edges in order. Raises EngineError `bad_genotype` for what is no cell."""
        new = tuple(edge for edge in self.edges if edge != _ORIGINAL_EDGE)
        pairs = {(edge.source, edge.target) for edge in new}
        if not new or len(pairs) < len(new) or any(edge.operation == ORIGINAL for edge in new):
            raise EngineError(
                "bad_genotype", f"{self.block}: a cell has one operation per pair of nodes beside the original"
            )
        kept = (_ORIGINAL_EDGE,) if self.keeps_original else ()
        object.__setattr__(self, "edges", (*kept, *in_order(new)))

    @property
    def keeps_original(self) -> bool:
        """Whether the original block is one of the cell's operations."""
        return _ORIGINAL_EDGE in self.edges

    @property
    def new_edges(self) -> tuple[Edge, ...]:
        """The edges whose operations are built anew."""
        return tuple(edge for edge in self.edges if edge != _ORIGINAL_EDGE)

    @property
    def name(self) -> str:
        """A short name for people: the one new operation, or how many there are."""
        new = self.new_edges
        what = new[0].operation if len(new) == 1 else f"cell of {len(new)} operations"
        return what if self.keeps_original else f"{what} in its place"

    def to_json(self) -> dict[str, Any]:
        """Plain data; the original comes first where it stays."""
        edges = [{"from": edge.source, "to": edge.target, "operation": edge.operation} for edge in self.edges]
        return {"block": self.block, "edges": edges}


def branch_beside(block: str, primitive: str) -> Edit:
    """The smallest cell: the block as it is, and one new operation beside it."""
    return Edit(block, (_ORIGINAL_EDGE, Edge(INPUT_NODE, OUTPUT_NODE, primitive)))


def in_place_of(block: str, operation: str) -> Edit:
    """One operation where the block was; with the skip connection the block is removed."""
    return Edit(block, (Edge(INPUT_NODE, OUTPUT_NODE, operation),))


@dataclass(frozen=True)
class Genotype:
    """Which modules train (`scope`), which blocks change, and where training starts.

    No edits means "keep the architecture"; `start` is the original or the same with re-estimated batch-norms; `align`
    is the weight of matching the healthy statistics while training, where the spec leaves it open.
    """

    scope: Scope
    edits: tuple[Edit, ...] = ()
    start: Start = "original"
    align: float = 0.0

    @property
    def name(self) -> str:
        """A short name for people, e.g. `layer1.0 + bottleneck`."""
        parts = [part or "network" for part in self.scope]
        scope = ", ".join(parts) if len(parts) <= MAX_NAMED else f"{len(parts)} modules"
        name = " + ".join([scope, *(edit.name for edit in self.edits)])
        name = f"{name}, aligned" if self.align else name
        return name if self.start == "original" else f"{name}, {self.start} statistics"

    def to_json(self) -> dict[str, Any]:
        """Plain data: scope, start, and per edited block the edges of its cell."""
        return {
            "scope": [part or "network" for part in self.scope],
            "start": self.start,
            "align": self.align,
            "edits": [edit.to_json() for edit in self.edits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Genotype":
        """The genotype whose `to_json` this is. Raises EngineError `bad_genotype` for edges that make no cell."""
        edits = [Edit(edit["block"], tuple(map(_edge_from_json, edit["edges"]))) for edit in data["edits"]]
        scope = tuple("" if part == "network" else part for part in data["scope"])
        return cls(scope, tuple(edits), data["start"], data["align"])


def _edge_from_json(data: Mapping[str, str]) -> Edge:
    return Edge(data["from"], data["to"], data["operation"])


def build_(model: nn.Module, genotype: Genotype, blocks: Mapping[str, Block], *, seed: int) -> nn.Module:
    """Give `model` the genotype's cells, in place; where they keep the original the function is still the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edit in genotype.edits:
            # A block without weights of its own computes with the host's.
            owner = model if blocks[edit.block].borrowed else model.get_submodule(edit.block)
            weight = next(p for p in owner.parameters() if p.is_floating_point())
            branch = build_branch(blocks[edit.block], edit.new_edges).to(weight.device, weight.dtype)
            base = BlockWithBranch if edit.keeps_original else BlockReplaced
            edited = with_branch(model.get_submodule(edit.block), branch, blocks[edit.block], base=base)
            if not edit.keeps_original:
                branch.scale.data.fill_(1.0)  # there is no function to preserve, and zeros would pass no gradient on
            replace_block_(model, edit.block, edited)
    return model
