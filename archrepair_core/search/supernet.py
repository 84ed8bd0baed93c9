"""The relaxed block: every edge of a cell holds all operations at once, weighted by the softmax of its alphas.

Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019, equation 2; as the repair of a block: Qi et al.,
"ArchRepair", TOSEM 2023. docs/archrepair.md lists what the readable text leaves open and what was chosen here.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor, nn

from archrepair_core.blocks import Block
from archrepair_core.errors import EngineError
from archrepair_core.search.branches import BlockMixed, with_branch
from archrepair_core.search.dag import INPUT_NODE, OUTPUT_NODE, Edge
from archrepair_core.search.operations import NONE, ORIGINAL, searched_operations
from archrepair_core.search.primitives import Span, span_of

NUM_NODES = 2
# What the trained block has of every edge in the beginning: the share of the original on its own, of `none` on others.
# From all alike, as in DARTS, it had to learn the function of the block again before anything new (docs/archrepair.md).
TRAINED_SHARE = 0.9


class MixedOperation(nn.Module):
    """One edge: the operations by name, and an alpha for each. `original` and `none` have an alpha but no module.

    In the beginning the one `trained` has `TRAINED_SHARE`, and all others alike.
    """

    def __init__(self, operations: dict[str, nn.Module], names: Sequence[str], *, trained: str) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(operations)
        self.names = tuple(names)
        odds = TRAINED_SHARE / (1 - TRAINED_SHARE) * (len(self.names) - 1)
        self.alphas = nn.Parameter(torch.tensor([math.log(odds) if name == trained else 0.0 for name in self.names]))
        self.active = self.names

    def shares(self) -> dict[str, Tensor]:
        """The softmax over the alphas of the active operations, by name."""
        places = [self.names.index(operation) for operation in self.active]
        return dict(zip(self.active, self.alphas[places].softmax(0).unbind(), strict=True))

    def forward(self, x: Tensor) -> Tensor | None:
        """The weighted sum of what the modules give; None where no active operation is one."""
        total: Tensor | None = None
        for operation, share in self.shares().items():
            if operation in self.operations:
                term = share * self.operations[operation](x)
                total = term if total is None else total + term
        return total

    @contextmanager
    def only(self, names: Sequence[str]) -> Iterator[None]:
        """With these operations alone, the softmax over them; none at all is an edge that passes nothing."""
        before, self.active = self.active, tuple(names)
        try:
            yield
        finally:
            self.active = before


class Supernet(nn.Module):
    """The cell but for the original block: each node sums what comes over mixed edges from all nodes before it."""

    def __init__(self, mixed: dict[Edge, MixedOperation], empty_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.ends = [(edge.source, edge.target, edge.module_name) for edge in mixed]
        self.edges = nn.ModuleDict({edge.module_name: operation for edge, operation in mixed.items()})
        self.empty_shape = empty_shape

    def forward(self, x: Tensor) -> Tensor:
        """What arrives at the output besides the original block's share of it."""
        nodes = {INPUT_NODE: x}
        for source, target, module_name in self.ends:
            answer = self.edges[module_name](nodes[source]) if source in nodes else None
            if answer is not None:
                nodes[target] = nodes[target] + answer if target in nodes else answer
        return nodes[OUTPUT_NODE] if OUTPUT_NODE in nodes else x.new_zeros(len(x), *self.empty_shape)

    def original_share(self) -> Tensor:
        """The weight of the original block on the edge from input to output."""
        direct = self.mixed(INPUT_NODE, OUTPUT_NODE)
        return direct.shares().get(ORIGINAL, direct.alphas.new_zeros(()))

    def mixed(self, source: str, target: str) -> MixedOperation:
        """The mixed operation of one edge."""
        found = self.edges[Edge(source, target, "").module_name]
        assert isinstance(found, MixedOperation)
        return found

    def shares(self) -> dict[str, dict[str, float]]:
        """By edge and operation, the weight it has in the sum."""
        return {
            f"{source} → {target}": {
                operation: round(share.item(), 4) for operation, share in self.mixed(source, target).shares().items()
            }
            for source, target, _ in self.ends
        }


def relax(original: nn.Module, block: Block, *, seed: int, num_nodes: int = NUM_NODES) -> nn.Module:
    """The block as a supernet, called as `original` was; its parts are named `original` and `branch`, as a cell's are.

    Nearly the same function in the beginning, and not quite: see `TRAINED_SHARE`. Raises EngineError for a block whose
    shapes no operation can bridge.
    """
    span = span_of(block)
    if span is None:
        raise EngineError("not_searchable", f"no operation leads from {block.input_shape} to {block.output_shape}")
    nodes = [INPUT_NODE, *(str(number) for number in range(1, num_nodes + 1)), OUTPUT_NODE]
    ordered = sorted(combinations(nodes, 2), key=lambda pair: (nodes.index(pair[1]), nodes.index(pair[0])))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixed = {Edge(source, target, ""): _mixed_operation(block, span, source, target) for source, target in ordered}
    return with_branch(original, Supernet(mixed, block.output_shape).eval(), block, base=BlockMixed)


def _mixed_operation(block: Block, span: Span, source: str, target: str) -> MixedOperation:
    crossed = span if source == INPUT_NODE else Span(span.channels_out, span.channels_out)
    operations = {name: make(crossed) for name, make in searched_operations(block).items()}
    if (source, target) == (INPUT_NODE, OUTPUT_NODE):
        return MixedOperation(operations, [*operations, NONE, ORIGINAL], trained=ORIGINAL)
    return MixedOperation(operations, [*operations, NONE], trained=NONE)
