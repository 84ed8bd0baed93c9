"""Probes: short measured repairs of every block on cached features; validation says which block is worth repairing.

Successive halving as in search/search.py: all train alike long, the better third three times as long, and so on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from archrepair_core.localize.rank import NUM_RESAMPLES, Floats
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import KEEP_SHARE, run_rung, rung_epochs_of
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.selection import ValidationScore

# Rungs of successive halving; the first ranks all blocks, the second the best third of them.
NUM_RUNGS = 2


@dataclass(frozen=True)
class ProbeScores:
    """Smoothed change of validation accuracy that repairing a block brought, over resampled validation inputs [B, N].

    `names` are the blocks that were probed; those that went further in the halving come first.
    """

    names: tuple[str, ...]
    gain_BN: Floats

    @property
    def order(self) -> dict[str, float]:
        """A score per probed block that keeps the order of the halving: its gain, less than those that went further."""
        gains = self.gain_BN[0]
        return {name: float(min(gains[: place + 1])) for place, name in enumerate(self.names)}


def probe_blocks(arena: Arena, names: Sequence[str], *, until: float, seed: int) -> ProbeScores:
    """Probe blocks, most suspicious first; those not reached at `until` (`time.monotonic()`) are left out."""
    field, furthest = [Genotype((name,)) for name in names], dict[str, Trial]()
    epochs = rung_epochs_of(arena)
    for _ in range(NUM_RUNGS):
        rung = sorted(run_rung(arena, field, epochs=epochs, until=until), key=lambda trial: -trial.score.utility)
        ahead = {trial.genotype.scope[0]: trial for trial in rung}
        furthest = {**ahead, **{name: trial for name, trial in furthest.items() if name not in ahead}}
        field = [trial.genotype for trial in rung[: max(1, len(rung) // KEEP_SHARE)]]
        epochs *= KEEP_SHARE
        if len(field) < 2:
            break
    return ProbeScores(tuple(furthest), _resampled_gains(list(furthest.values()), seed=seed))


def _resampled_gains(trials: Sequence[Trial], *, seed: int) -> npt.NDArray[np.float64]:
    """The same resamples of the validation inputs for every block, so that differences are paired."""
    scores = [trial.score for trial in trials if isinstance(trial.score, ValidationScore)]
    if not scores:
        return np.empty((0, 0))
    change_NI = np.stack([score.smooth_change_N.numpy() for score in scores]).astype(np.float64)
    rng, count = np.random.default_rng(seed), change_NI.shape[1]
    weights = rng.multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES) / count
    return np.concatenate([change_NI.mean(1)[None], weights @ change_NI.T])
