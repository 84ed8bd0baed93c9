"""Weights only: fine-tune one block, or the whole network, with the architecture as it is.

The levels of ArchRepair's empirical study (Qi et al., TOSEM 2023).
"""

from collections.abc import Sequence

from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import Arena, Trial, race
from archrepair_core.training import NETWORK


def fine_tune(arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None) -> list[Trial]:
    """Train the network (`level="network"`) or the most suspicious block, with the whole budget."""
    scope = NETWORK if level == "network" else (suspects[0],)
    return race(arena, [Genotype(scope)], deadline=deadline, epochs=epochs)
