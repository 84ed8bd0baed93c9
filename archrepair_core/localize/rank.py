"""From observations to a ranking of blocks, with its uncertainty.

Our re-implementation of ArchRepair's localization (Qi et al., TOSEM 2023, arXiv 2111.13330), which contrasts neurons'
status forwards and weights' gradients backwards over passing and failing inputs, with adversarial twins. The paper's
readable text leaves formula, threshold and aggregation open; ours are: an input (or twin) passes or fails by what the
model answers for it; active = above the channel's median on passing originals; gradient contrast = mean influence on
failing − on passing originals; channel score = rank(suspiciousness) × rank(contrast); block score = mean of its top
10 % channels, so that size does not win.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, rankdata

from archrepair_core.blocks import Block
from archrepair_core.localize.observe import Observations
from archrepair_core.localize.suspiciousness import FORMULAS, count_spectrum

TOP_SHARE = 0.10
NUM_RESAMPLES = 20
# Rankings of resampled inputs that agree less than this (mean Kendall τ) are called unstable.
STABLE_TAU = 0.6

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankedBlock:
    """A block's suspiciousness, its sd over resamples of the inputs, and the share of them in which it comes first."""

    name: str
    score: float
    score_sd: float
    top_share: float


@dataclass(frozen=True)
class LayerDrift:
    """How far one layer's statistics are from the reference's: KL in nats per channel, and its jump over the layer
    before."""

    layer: str
    divergence: float
    jump: float


@dataclass(frozen=True)
class Localization:
    """Blocks by suspiciousness, most suspicious first, and the kind of fault with the numbers behind it.

    `stability` is the mean Kendall τ of resampled rankings; `methods` holds the scores of every method that was asked,
    `drift` the fingerprint layer by layer, `passes` counts inputs sent forwards and backwards.
    """

    method: str
    formula: str
    blocks: tuple[RankedBlock, ...]
    layers: tuple[RankedBlock, ...] = ()
    stability: float = 0.0
    n_passing: int = 0
    n_failing: int = 0
    kind: str = "unknown"
    evidence: Mapping[str, float | str] = field(default_factory=dict)
    drift: tuple[LayerDrift, ...] = ()
    methods: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    passes: int = 0

    @property
    def is_stable(self) -> bool:
        """Whether other inputs of the same kind would give about the same ranking."""
        return self.stability >= STABLE_TAU


ChannelScores = Callable[[Floats, Floats], Floats]
# Each method says how the two per-channel signals, already as ranks in (0, 1], become one.
METHODS: dict[str, ChannelScores] = {
    "spectrum": lambda suspiciousness, contrast: suspiciousness,
    "gradient": lambda suspiciousness, contrast: contrast,
    "spectrum+gradient": lambda suspiciousness, contrast: suspiciousness * contrast,
}


def rank_blocks(seen: Observations, blocks: Sequence[Block], *, method: str, formula: str, seed: int) -> Localization:
    """Score and rank `blocks` and every layer; resample the inputs for standard deviations and rank stability."""
    suspiciousness_BC, contrast_BC = _channel_signals(seen, formula=formula, seed=seed)
    groups = {block.name: _channels_of(block.name, seen.layers) for block in blocks}
    layers = {name: np.arange(columns.start, columns.stop) for name, columns in seen.layers.items()}
    by_method = {
        name: _score_groups(combine(suspiciousness_BC, contrast_BC), list(groups.values()))
        for name, combine in METHODS.items()
    }
    layer_scores = _score_groups(METHODS[method](suspiciousness_BC, contrast_BC), list(layers.values()))
    num_passing = int(seen.right_I[: seen.num_items].sum())
    return Localization(
        method=method,
        formula=formula,
        blocks=ranked(list(groups), by_method[method][0], by_method[method][1:]),
        layers=ranked(list(layers), layer_scores[0], layer_scores[1:]),
        stability=rank_stability(by_method[method][0], by_method[method][1:]),
        n_passing=num_passing,
        n_failing=seen.num_items - num_passing,
        methods={name: dict(zip(groups, scores[0].tolist(), strict=True)) for name, scores in by_method.items()},
        passes=seen.passes,
    )


def rank_at_random(blocks: Sequence[Block], *, seed: int) -> Localization:
    """The control every localization has to beat: the same blocks in random order."""
    scores = np.random.default_rng(seed).random(len(blocks))
    return Localization("random", "none", ranked([block.name for block in blocks], scores, np.empty((0, len(blocks)))))


def ranked(names: Sequence[str], scores: Floats, resampled_BN: Floats) -> tuple[RankedBlock, ...]:
    """Names by score, highest first; `resampled_BN` are the scores over resampled inputs, one row each."""
    count = len(resampled_BN)
    sd = resampled_BN.std(axis=0) if count else np.zeros(len(names))
    top = np.bincount(resampled_BN.argmax(axis=1), minlength=len(names)) if count else np.zeros(len(names))
    rows = [
        RankedBlock(name, float(scores[i]), float(sd[i]), float(top[i] / max(1, count))) for i, name in enumerate(names)
    ]
    return tuple(sorted(rows, key=lambda row: -row.score))


def rank_stability(scores: Floats, resampled_BN: Floats) -> float:
    """Mean Kendall τ between the ranking and those of resampled inputs; 1 for a single block."""
    if len(scores) < 2:
        return 1.0
    taus = [kendalltau(scores, other).statistic for other in resampled_BN]
    return float(np.nan_to_num(np.mean(taus))) if taus else 0.0


def resample_weights(strata_I: npt.NDArray[np.bool_], *, seed: int) -> npt.NDArray[np.float32]:
    """How often each input counts: once in the first row, then `NUM_RESAMPLES` bootstraps within the two strata."""
    rng = np.random.default_rng(seed)
    weights_BI = np.ones((1 + NUM_RESAMPLES, len(strata_I)), dtype=np.float32)
    for stratum in (strata_I, ~strata_I):
        count = int(stratum.sum())
        if count:
            weights_BI[1:, stratum] = rng.multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)
    return weights_BI


def _channel_signals(seen: Observations, *, formula: str, seed: int) -> tuple[Floats, Floats]:
    """Suspiciousness and contrast as ranks in (0, 1], [B, C]; the first row is of all inputs, the others resampled."""
    own_passing = seen.right_I[: seen.num_items]
    weights_BI = resample_weights(own_passing, seed=seed)
    threshold_C = np.median(seen.activation_IC[: seen.num_items][own_passing], axis=0)
    spectrum = count_spectrum(seen.activation_IC > threshold_C, ~seen.right_I, weights_BI[:, seen.item_I])
    influence_IC = seen.influence_IC[: seen.num_items]
    means = [weights_BI[:, chosen] @ influence_IC[chosen] / chosen.sum() for chosen in (~own_passing, own_passing)]
    return _as_ranks(FORMULAS[formula](spectrum)), _as_ranks(means[0] - means[1])


def _as_ranks(values_BC: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(rankdata(values_BC, axis=1) / values_BC.shape[1])


def _channels_of(name: str, layers: Mapping[str, slice]) -> npt.NDArray[np.intp]:
    """The columns of block `name`."""
    found = [
        np.arange(columns.start, columns.stop)
        for layer, columns in layers.items()
        if layer == name or layer.startswith(f"{name}.")
    ]
    return np.concatenate(found) if found else np.empty(0, dtype=np.intp)


def _score_groups(channel_scores_BC: Floats, groups: Sequence[npt.NDArray[np.intp]]) -> Floats:
    return np.stack([_mean_of_top(channel_scores_BC[:, group]) for group in groups], axis=1)


def _mean_of_top(scores_BC: Floats) -> Floats:
    if scores_BC.shape[1] == 0:
        return np.zeros(len(scores_BC))
    count = max(1, round(TOP_SHARE * scores_BC.shape[1]))
    return np.asarray(np.sort(scores_BC, axis=1)[:, -count:].mean(axis=1))
