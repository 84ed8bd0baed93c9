"""From observations to a ranking of blocks, with its uncertainty.

Our re-implementation of ArchRepair's localization (Qi et al., TOSEM 2023, arXiv 2111.13330), which contrasts neurons'
status forwards and weights' gradients backwards over passing and failing inputs. The paper's readable text leaves the
formula, the activity threshold and the aggregation open; ours are: active = above the channel's median on passing
inputs; gradient contrast = mean influence on failing − on passing; channel score = rank(suspiciousness) ×
rank(contrast); block score = mean of its top 10 % channels, so that size does not win.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, rankdata

from archrepair_core.blocks import Block
from archrepair_core.localize.observe import LayerObservation
from archrepair_core.localize.suspiciousness import FORMULAS, count_spectrum

TOP_SHARE = 0.10
NUM_RESAMPLES = 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankedBlock:
    """A block's suspiciousness: `score` in [0, 1] with its bootstrap sd, and the rank-1 share over resamples."""

    name: str
    score: float
    score_sd: float
    top_share: float


@dataclass(frozen=True)
class Localization:
    """Blocks by suspiciousness, most suspicious first. `stability` is the mean Kendall τ of resampled rankings."""

    method: str
    formula: str
    blocks: tuple[RankedBlock, ...]
    layers: tuple[RankedBlock, ...]
    stability: float
    n_passing: int
    n_failing: int


@dataclass(frozen=True)
class Pools:
    """Observations of the same layers on passing and on failing inputs."""

    passing: Sequence[LayerObservation]
    failing: Sequence[LayerObservation]


ChannelScores = Callable[[Floats, Floats], Floats]
# Each method says how the two per-channel signals, already as ranks in (0, 1], become one.
METHODS: dict[str, ChannelScores] = {
    "spectrum": lambda suspiciousness, contrast: suspiciousness,
    "gradient": lambda suspiciousness, contrast: contrast,
    "spectrum+gradient": lambda suspiciousness, contrast: suspiciousness * contrast,
}


def rank_blocks(pools: Pools, blocks: Sequence[Block], *, method: str, formula: str, seed: int) -> Localization:
    """Score and rank `blocks` and every layer; resample the inputs for standard deviations and rank stability."""
    rng = np.random.default_rng(seed)
    n_passing, n_failing = len(pools.passing[0].activation_IC), len(pools.failing[0].activation_IC)
    groups = [_channels_of(block.name, pools.passing) for block in blocks]
    layers = [_channels_of(layer.layer, pools.passing, exact=True) for layer in pools.passing]

    def score(passing: npt.NDArray[np.intp], failing: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
        channels = _score_channels(pools, passing, failing, method=method, formula=formula)
        return _score_groups(channels, groups), _score_groups(channels, layers)

    block_scores, layer_scores = score(np.arange(n_passing), np.arange(n_failing))
    resampled = [
        score(rng.integers(n_passing, size=n_passing), rng.integers(n_failing, size=n_failing))
        for _ in range(NUM_RESAMPLES)
    ]
    return Localization(
        method=method,
        formula=formula,
        blocks=_ranked([block.name for block in blocks], block_scores, np.stack([pair[0] for pair in resampled])),
        layers=_ranked([x.layer for x in pools.passing], layer_scores, np.stack([pair[1] for pair in resampled])),
        stability=_stability(block_scores, [pair[0] for pair in resampled]),
        n_passing=n_passing,
        n_failing=n_failing,
    )


def rank_at_random(blocks: Sequence[Block], *, seed: int) -> Localization:
    """The control every localization has to beat: the same blocks in random order."""
    scores = np.random.default_rng(seed).random(len(blocks))
    ranked = _ranked([block.name for block in blocks], scores, np.empty((0, len(blocks))))
    return Localization("random", "none", ranked, (), 0.0, 0, 0)


def _score_channels(
    pools: Pools, passing: npt.NDArray[np.intp], failing: npt.NDArray[np.intp], *, method: str, formula: str
) -> Floats:
    suspiciousness, contrast = [], []
    for on_passing, on_failing in zip(pools.passing, pools.failing, strict=True):
        passed, failed = on_passing.activation_IC[passing], on_failing.activation_IC[failing]
        threshold = np.median(passed, axis=0)
        suspiciousness.append(FORMULAS[formula](count_spectrum(failed > threshold, passed > threshold)))
        contrast.append(on_failing.influence_IC[failing].mean(0) - on_passing.influence_IC[passing].mean(0))
    return METHODS[method](_as_ranks(suspiciousness), _as_ranks(contrast))


def _as_ranks(per_layer: Sequence[npt.NDArray[np.floating]]) -> Floats:
    values = np.concatenate(per_layer)
    return np.asarray(rankdata(values) / len(values))


def _channels_of(name: str, layers: Sequence[LayerObservation], *, exact: bool = False) -> npt.NDArray[np.intp]:
    """Positions of the channels of block `name` in the concatenation over layers."""
    found, start = [], 0
    for layer in layers:
        stop = start + layer.activation_IC.shape[1]
        if layer.layer == name or (not exact and layer.layer.startswith(f"{name}.")):
            found.append(np.arange(start, stop))
        start = stop
    return np.concatenate(found) if found else np.empty(0, dtype=np.intp)


def _score_groups(channel_scores: Floats, groups: Sequence[npt.NDArray[np.intp]]) -> Floats:
    return np.array([_mean_of_top(channel_scores[group]) for group in groups])


def _mean_of_top(scores: Floats) -> float:
    if len(scores) == 0:
        return 0.0
    count = max(1, round(TOP_SHARE * len(scores)))
    return float(np.sort(scores)[-count:].mean())


def _ranked(names: Sequence[str], scores: Floats, resampled: Floats) -> tuple[RankedBlock, ...]:
    sd = resampled.std(axis=0) if len(resampled) else np.zeros(len(names))
    top = np.bincount(resampled.argmax(axis=1), minlength=len(names)) if len(resampled) else np.zeros(len(names))
    rows = [
        RankedBlock(name, float(scores[i]), float(sd[i]), float(top[i] / max(1, len(resampled))))
        for i, name in enumerate(names)
    ]
    return tuple(sorted(rows, key=lambda row: -row.score))


def _stability(scores: Floats, resampled: Sequence[Floats]) -> float:
    if len(scores) < 2:
        return 1.0
    taus = [kendalltau(scores, other).statistic for other in resampled]
    return float(np.nan_to_num(np.mean(taus)))
