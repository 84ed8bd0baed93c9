"""Genotype: what a search found, as plain data that can be stored, compared and built again."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from archrepair_core.blocks import Block, replace_block_
from archrepair_core.search.primitives import BlockWithBranch, build_branch
from archrepair_core.training import Scope


@dataclass(frozen=True)
class Edit:
    """One block gets the branch `primitive` beside its original operation."""

    block: str
    primitive: str


@dataclass(frozen=True)
class Genotype:
    """Which modules train (`scope`) and which blocks change; no edits means "keep the architecture"."""

    scope: Scope
    edits: tuple[Edit, ...] = ()

    @property
    def name(self) -> str:
        """A short name for people, e.g. `layer1.0 + bottleneck`."""
        scope = ", ".join(part or "network" for part in self.scope)
        return " + ".join([scope, *(edit.primitive for edit in self.edits)])

    def to_json(self) -> dict[str, Any]:
        """Plain data: scope, and per edited block the operations on its edge."""
        return {
            "scope": [part or "network" for part in self.scope],
            "edits": [{"block": edit.block, "operations": ["original", edit.primitive]} for edit in self.edits],
        }


def build_(model: nn.Module, genotype: Genotype, blocks: dict[str, Block], *, seed: int) -> nn.Module:
    """Give `model` the genotype's branches, in place; the function it computes is still the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edit in genotype.edits:
            device = next(model.parameters()).device
            branch = build_branch(blocks[edit.block], edit.primitive).to(device)
            replace_block_(model, edit.block, BlockWithBranch(model.get_submodule(edit.block), branch))
    return model
