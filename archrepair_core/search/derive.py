"""From a trained supernet to the edges of a cell, by the size of its alphas or by what it loses without them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby

from archrepair_core.search.dag import OUTPUT_NODE, Edge
from archrepair_core.search.operations import NONE
from archrepair_core.search.supernet import MixedOperation, Supernet

# DARTS, section 2.4: every node keeps the operations on its two strongest incoming edges.
EDGES_PER_NODE = 2
Strengths = Mapping[Edge, float]


def derive_by_alphas(supernet: Supernet, _loss: Callable[[], float]) -> dict[Edge, float]:
    """The cell, each edge with its strength: the operation of largest alpha per edge, `none` apart; then the strongest
    edges into each node. Liu et al., ICLR 2019, section 2.4."""
    strengths = {}
    for source, target, _ in supernet.ends:
        shares = {name: share.item() for name, share in supernet.mixed(source, target).shares().items() if name != NONE}
        best = max(shares, key=shares.__getitem__)
        # The edge that also holds the original has one operation more, so that all its shares are smaller.
        strengths[Edge(source, target, best)] = shares[best] * len(supernet.mixed(source, target).names)
    return _kept(strengths)


def derive_by_perturbation(supernet: Supernet, loss: Callable[[], float]) -> dict[Edge, float]:
    """The cell, each edge with its strength: per edge, the operation without which the validation loss is highest;
    then per node, the edges without which it is. Nothing is trained in between, and an edge that is decided keeps
    `none` beside its operation, or that would suddenly count many times as much.

    Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021, algorithm 1.
    """
    with ExitStack() as chosen:
        edges = []
        for source, target, _ in supernet.ends:
            mixed = supernet.mixed(source, target)
            candidates = [name for name in mixed.names if name != NONE]
            best = max(candidates, key=lambda name: _loss_without(mixed, name, loss))
            edges.append(Edge(source, target, best))
            chosen.enter_context(mixed.only([best, NONE]))
        strengths = {
            edge: _loss_without(supernet.mixed(edge.source, edge.target), edge.operation, loss) for edge in edges
        }
    return _kept(strengths)


DERIVATIONS: dict[str, Callable[[Supernet, Callable[[], float]], dict[Edge, float]]] = {
    "argmax": derive_by_alphas,
    "perturbation": derive_by_perturbation,
}


def _loss_without(mixed: MixedOperation, operation: str, loss: Callable[[], float]) -> float:
    with mixed.only([name for name in mixed.active if name != operation]):
        return loss()


def _kept(strengths: Strengths) -> dict[Edge, float]:
    """The strongest edges into each node, without those into nodes that nothing reads any more."""
    by_target = groupby(sorted(strengths, key=lambda edge: edge.target), key=lambda edge: edge.target)
    kept = [
        edge for _, edges in by_target for edge in sorted(edges, key=lambda edge: -strengths[edge])[:EDGES_PER_NODE]
    ]
    return {edge: strengths[edge] for edge in without_dead_ends(kept)}


def without_dead_ends(edges: Iterable[Edge]) -> Sequence[Edge]:
    """The edges that lie on a way from input to output."""
    kept = list(edges)
    while True:
        read = {OUTPUT_NODE, *(edge.source for edge in kept)}
        fed = {"input", *(edge.target for edge in kept)}
        alive = [edge for edge in kept if edge.target in read and edge.source in fed]
        if len(alive) == len(kept):
            return alive
        kept = alive
