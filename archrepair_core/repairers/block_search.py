"""Block search: race architectures and weights of the suspicious blocks together; keeping the architecture is one.

Last come cells without the original block: removed, or replaced by something cheaper. They start as another function
and cannot be walked back, so that they win only where validation clearly likes them better than all that keep it.
"""

from collections.abc import Sequence

from archrepair_core.search.genotype import Genotype, branch_beside, in_place_of
from archrepair_core.search.operations import SKIP
from archrepair_core.search.primitives import primitives_for, span_of
from archrepair_core.search.search import race
from archrepair_core.search.trials import Arena, Trial

# By the number of dimensions of one input of the block: what may stand in its place.
REPLACEMENTS = {1: (SKIP, "low_rank"), 2: (SKIP, "adapter"), 3: (SKIP, "sep_conv_3x3")}


def search_block(arena: Arena, suspects: Sequence[str], *, deadline: float, epochs: int | None) -> list[Trial]:
    """Race every suspect with its weights alone, then with one new branch, then replaced; most suspicious first."""
    return race(arena, block_genotypes(arena, suspects), deadline=deadline, epochs=epochs)


def block_genotypes(arena: Arena, suspects: Sequence[str]) -> list[Genotype]:
    """Candidates in order of prior belief: all suspects as they are, with each primitive beside them, replaced."""
    kept = [Genotype((name,)) for name in suspects]
    edited = [
        Genotype((name,), (branch_beside(name, primitive),))
        for name in suspects
        for primitive in primitives_for(arena.blocks[name])
    ]
    replaced = [
        Genotype((name,), (in_place_of(name, operation),))
        for name in suspects
        if span_of(arena.blocks[name])
        for operation in REPLACEMENTS[len(arena.blocks[name].input_shape)]
    ]
    return kept + edited + replaced
