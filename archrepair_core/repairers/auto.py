"""`auto`: the ladder. Cheap first, measured always, never worse than the original.

Batch-norm statistics come first; where validation likes them they are a second place to start from. The race holds the
network, the stage around the first suspect, the suspicious blocks as they are, and then new branches.
"""

from collections.abc import Sequence
from dataclasses import replace

from archrepair_core.blocks import Block
from archrepair_core.repairers.align import align_block
from archrepair_core.repairers.block_search import block_genotypes
from archrepair_core.repairers.bn import re_estimate_batch_norm
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import Arena, Trial, race
from archrepair_core.selection import NO_CHANGE_UTILITY
from archrepair_core.training import NETWORK


def climb_ladder(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """The best trial first; `level="block"` or `"network"` keeps the race on that level."""
    re_estimated = re_estimate_batch_norm(arena)
    if not arena.has_labels:
        aligned = align_block(arena, suspects, level=level, deadline=deadline, epochs=epochs)
        return sorted([*aligned, *filter(None, [re_estimated])], key=lambda trial: -trial.score.utility)
    if re_estimated and re_estimated.score.utility > NO_CHANGE_UTILITY:
        start = arena.starts["original"].starting_from(re_estimated.model)
        arena = replace(arena, starts={**arena.starts, "re-estimated": start})
    trials = race(arena, _candidates(arena, suspects, level=level), deadline=deadline, epochs=epochs)
    if re_estimated is None:
        return trials
    best_is_cheap = (
        not trials
        or re_estimated.score.clearly_beats(trials[0].score)
        or trials[0].score.utility <= NO_CHANGE_UTILITY < re_estimated.score.utility
    )
    return [re_estimated, *trials] if best_is_cheap else [*trials, re_estimated]


def _candidates(arena: Arena, suspects: Sequence[str], *, level: str) -> list[Genotype]:
    """In order of prior belief: the network fixed most in the same seconds (docs/results.md), then the stage around the
    first suspect, which is what the paper's ResNets call a block, then the suspects, then new branches."""
    if level == "network":
        return _from_every_start(arena, [Genotype(NETWORK)])
    by_block = block_genotypes(arena, suspects)
    kept, edited = by_block[: len(suspects)], by_block[len(suspects) :]
    if level == "block":
        return _from_every_start(arena, kept) + edited
    stages = [Genotype((stage,)) for stage in _stages_around(arena.blocks, suspects)]
    first = [Genotype(NETWORK), *stages[:1], *kept[:1]]
    return _from_every_start(arena, first) + stages[1:] + kept[1:] + edited


def _from_every_start(arena: Arena, genotypes: Sequence[Genotype]) -> list[Genotype]:
    return [replace(genotype, start=start) for start in arena.starts for genotype in genotypes]


def _stages_around(blocks: dict[str, Block], suspects: Sequence[str]) -> list[str]:
    around = [
        name
        for suspect in suspects
        for name, block in blocks.items()
        if block.level == "stage" and suspect.startswith(f"{name}.")
    ]
    return list(dict.fromkeys(around))
