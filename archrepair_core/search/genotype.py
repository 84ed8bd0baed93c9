"""Genotype: what a search found, as plain data that can be stored, compared and built again."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from archrepair_core.blocks import Block, replace_block_
from archrepair_core.search.branches import with_branch
from archrepair_core.search.primitives import build_branch
from archrepair_core.training import Scope

MAX_NAMED = 3
Start = Literal["original", "re-estimated"]


@dataclass(frozen=True)
class Edit:
    """One block gets the branch `primitive` beside its original operation."""

    block: str
    primitive: str


@dataclass(frozen=True)
class Genotype:
    """Which modules train (`scope`), which blocks change, and where training starts.

    No edits means "keep the architecture"; `start` is the original or the same with re-estimated batch-norms.
    """

    scope: Scope
    edits: tuple[Edit, ...] = ()
    start: Start = "original"

    @property
    def name(self) -> str:
        """A short name for people, e.g. `layer1.0 + bottleneck`."""
        parts = [part or "network" for part in self.scope]
        scope = ", ".join(parts) if len(parts) <= MAX_NAMED else f"{len(parts)} modules"
        name = " + ".join([scope, *(edit.primitive for edit in self.edits)])
        return name if self.start == "original" else f"{name}, {self.start} statistics"

    def to_json(self) -> dict[str, Any]:
        """Plain data: scope, start, and per edited block the operations on its edge."""
        return {
            "scope": [part or "network" for part in self.scope],
            "start": self.start,
            "edits": [{"block": edit.block, "operations": ["original", edit.primitive]} for edit in self.edits],
        }


def build_(model: nn.Module, genotype: Genotype, blocks: dict[str, Block], *, seed: int) -> nn.Module:
    """Give `model` the genotype's branches, in place; the function it computes is still the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edit in genotype.edits:
            # A block without weights of its own computes with the host's.
            owner = model if blocks[edit.block].borrowed else model.get_submodule(edit.block)
            weight = next(p for p in owner.parameters() if p.is_floating_point())
            branch = build_branch(blocks[edit.block], edit.primitive).to(weight.device, weight.dtype)
            edited = with_branch(model.get_submodule(edit.block), branch, blocks[edit.block])
            replace_block_(model, edit.block, edited)
    return model
