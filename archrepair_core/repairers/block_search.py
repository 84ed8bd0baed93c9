"""Block search: race architectures and weights of the suspicious blocks together; keeping the architecture is one."""

from collections.abc import Sequence

from archrepair_core.search.genotype import Genotype, branch_beside
from archrepair_core.search.primitives import primitives_for
from archrepair_core.search.search import Arena, Trial, race


def search_block(arena: Arena, suspects: Sequence[str], *, deadline: float, epochs: int | None) -> list[Trial]:
    """Race every suspect with its weights alone, then each with one new branch, most suspicious first."""
    return race(arena, block_genotypes(arena, suspects), deadline=deadline, epochs=epochs)


def block_genotypes(arena: Arena, suspects: Sequence[str]) -> list[Genotype]:
    """Candidates in order of prior belief: all suspects as they are, then with each primitive beside them."""
    kept = [Genotype((name,)) for name in suspects]
    edited = [
        Genotype((name,), (branch_beside(name, primitive),))
        for name in suspects
        for primitive in primitives_for(arena.blocks[name])
    ]
    return kept + edited
