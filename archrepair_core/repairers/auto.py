"""`auto`: the ladder. Cheap first, measured always, never worse than the original.

Two rungs need no labels: batch-norm statistics re-estimated, and the blamed block aligned to the healthy statistics.
What validation likes of them is one more place to start from. Then scopes and architectures race: how they are ordered
depends on what the fault looks like, and a later one has to beat an earlier one clearly.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from archrepair_core.blocks import Block
from archrepair_core.prefix_cache import PrefixCache
from archrepair_core.repairers.align import align_block
from archrepair_core.repairers.block_search import block_genotypes
from archrepair_core.repairers.bn import re_estimate_batch_norm
from archrepair_core.scope import NETWORK, Scope
from archrepair_core.search.genotype import Genotype, Start
from archrepair_core.search.search import race
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.selection import ValidationScore

# Aligning may use this share of the time when labels are there to do better; it settles long before.
ALIGN_SHARE = 0.15
# Weight of the healthy statistics as a regulariser, where it is worth a trial of its own.
ALIGN_WEIGHT = 0.1
# So many failures, and nothing else of the field, are repaired by one block; of fewer the network learns as well.
MANY_FAILURES = 250
# By the kind of fault, the scopes in order of prior belief (docs/choices.md says what that rests on).
SCOPES_BY_FAULT: dict[str, tuple[str, ...]] = {
    "damaged_weights": ("suspects", "network", "stages around"),
    "input_shift": ("network", "first stages", "stages around", "suspects"),
    "overfitting": ("network", "last stages", "stages around", "suspects"),
    "label_or_class": ("network", "last stages", "suspects", "stages around"),
    "unknown": ("network", "stages around", "suspects", "last stages"),
}


def climb_ladder(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """The best trial first; `level="block"` or `"network"` keeps the race on that level."""
    cheap = _label_free_rungs(arena, suspects, deadline=deadline)
    if not arena.has_labels:
        return sorted(cheap, key=lambda trial: -trial.score.utility)
    liked = [trial for trial in cheap if trial.score.helps]
    arena = replace(arena, starts=_starts(arena, liked))
    trials = race(arena, candidates(arena, suspects, level=level), deadline=deadline, epochs=epochs)
    best = max(liked, key=lambda trial: trial.score.utility, default=None)
    if best is not None and (not trials or best.score.clearly_beats(trials[0].score) or not trials[0].score.helps):
        return [best, *trials, *(trial for trial in cheap if trial is not best)]
    return [*trials, *cheap]


def candidates(arena: Arena, suspects: Sequence[str], *, level: str) -> list[Genotype]:
    """Everything worth a race, in order of prior belief: sets of blocks as they are, then with one new branch."""
    if level == "network":
        return _from_every_start(arena, [NETWORK])
    by_block = block_genotypes(arena, suspects)
    kept, edited = by_block[: len(suspects)], by_block[len(suspects) :]
    if level == "block":
        return _from_every_start(arena, [genotype.scope for genotype in kept]) + edited
    if arena.shows_only_failures and arena.num_repair >= MANY_FAILURES and not arena.restoration:
        # Probes like what learns fast, and what breaks in the field cannot be seen. Of many failures the network learns
        # at the cost of what works today, which ends its walk early; one block does not (docs/choices.md).
        return [Genotype((suspects[0],))]
    scopes = [scope for name in SCOPES_BY_FAULT[arena.fault] for scope in SCOPES[name](arena.blocks, suspects)]
    ordered = list(dict.fromkeys(scopes))
    # From another start only the first guess: a race that is too long tells nothing.
    first, others = _from_every_start(arena, ordered[:1]), [Genotype(scope) for scope in ordered[1:]]
    if arena.restoration or arena.bold:
        # Probes like what learns fast: two stages won one race in two, and gained less than the network in the end
        # (docs/choices.md). The time is better spent on the first guess.
        return first
    regularised = [replace(first[0], align=ALIGN_WEIGHT)] if arena.tells_healthy else []
    return first + others + regularised + edited


def _label_free_rungs(arena: Arena, suspects: Sequence[str], *, deadline: float) -> list[Trial]:
    """Re-estimated statistics, and alignment where a block is damaged or nothing else can be done."""
    re_estimated = re_estimate_batch_norm(arena)
    trials = [re_estimated] if re_estimated else []
    if not arena.has_labels or (arena.fault == "damaged_weights" and arena.tells_healthy):
        now = time.monotonic()
        until = now + ALIGN_SHARE * (deadline - now) if arena.has_labels else deadline
        trials += align_block(arena, suspects[:1], level="block", deadline=until, epochs=None)
    return trials


def _starts(arena: Arena, liked: Sequence[Trial]) -> dict[Start, PrefixCache]:
    """Where a block may start, the best guess first.

    A start that broke something on the way has used up part of what may be broken at all, so it has to help clearly to
    stand before the original.
    """
    caches = {_start_of(trial): arena.starts["original"].starting_from(trial.model) for trial in liked}
    clear = {
        _start_of(trial): trial.score.utility
        for trial in liked
        if isinstance(trial.score, ValidationScore) and trial.score.clearly_helps
    }
    first = {start: caches.pop(start) for start in sorted(clear, key=lambda start: -clear[start])}
    return {**first, **arena.starts, **caches}


def _start_of(trial: Trial) -> Start:
    return "aligned" if trial.genotype.start == "original" else trial.genotype.start


def _around(blocks: Mapping[str, Block], suspects: Sequence[str]) -> list[Scope]:
    """The stages that hold a suspect: what the paper's ResNets call a block."""
    held = [stage for suspect in suspects for stage in _stages(blocks) if suspect.startswith(f"{stage}.")]
    return [(stage,) for stage in dict.fromkeys(held)]


def _two_stages(blocks: Mapping[str, Block], *, last: bool) -> list[Scope]:
    """The first or last two of the stages that stand beside each other; nested ones count by the outermost."""
    stages = [name for name in _stages(blocks) if not any(name.startswith(f"{other}.") for other in _stages(blocks))]
    if len(stages) < 3:  # two of two are nearly the network
        return []
    return [tuple(stages[-2:] if last else stages[:2])]


def _stages(blocks: Mapping[str, Block]) -> list[str]:
    return sorted((name for name, block in blocks.items() if block.level == "stage"), key=lambda n: blocks[n].depth)


SCOPES: dict[str, Callable[[Mapping[str, Block], Sequence[str]], list[Scope]]] = {
    "network": lambda blocks, suspects: [NETWORK],
    "suspects": lambda blocks, suspects: [(suspect,) for suspect in suspects],
    "stages around": _around,
    "first stages": lambda blocks, suspects: _two_stages(blocks, last=False),
    "last stages": lambda blocks, suspects: _two_stages(blocks, last=True),
}


def _from_every_start(arena: Arena, scopes: Sequence[Scope]) -> list[Genotype]:
    return [Genotype(scope, start=start) for scope in scopes for start in _starts_of(arena, scope)]


def _starts_of(arena: Arena, scope: Scope) -> list[Start]:
    """Every start; for the network, those that stand before the original, or the original alone.

    The network is walked back to the original from wherever it began, so a start that helped clearly takes its place:
    it broke less at the same gain. One that helped by chance does not: an overfitted network gained less from it than
    from the original (docs/measurements.md).
    """
    starts = list(arena.starts)
    return starts if scope != NETWORK else starts[: starts.index("original")] or ["original"]
