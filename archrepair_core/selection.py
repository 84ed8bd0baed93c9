"""What validation says: how good a repaired model is, and how far to walk from the original towards it.

Nothing here ever sees test data. Shapes: N validation inputs, K classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from archrepair_core.features import Features
from archrepair_core.margins import margins_of
from archrepair_core.scope import Scope, load_scoped_state, scoped_state

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
# Margins are smoothed by this share of their standard deviation, so that a few hundred items give a smooth gain.
MARGIN_SMOOTHING = 0.15
CLEAR = 2.0
# Neighbours in margin whose changes an input might as well have gone through.
NEIGHBOUR_SHARE, MIN_NEIGHBOURS, MAX_NEIGHBOURS = 0.4, 10, 200
BATCH_SIZE = 256
# Statistics of a few dozen inputs move by less than this share of their divergence for no reason.
REQUIRED_FALL = 0.1


class Score(Protocol):
    """What orders candidates, whatever it was measured by; the original has a utility of 0."""

    @property
    def utility(self) -> float:
        """Larger is better."""
        ...

    @property
    def standard_error(self) -> float:
        """Of the utility."""
        ...

    @property
    def helps(self) -> bool:
        """Whether this is to be preferred to the original."""
        ...

    def clearly_beats(self, other: Any) -> bool:
        """Whether this score is better than `other`, of the same kind, by more than chance explains."""
        ...

    def to_json(self) -> dict[str, float]:
        """The score as plain data."""
        ...


@dataclass(frozen=True)
class ValidationScore:
    """Shares of the validation inputs: right now, change against the original, broken; `utility` orders candidates.

    Utility is the accuracy change, smoothed over margins. Broken answers are not a matter of taste but of a limit: the
    walk towards a candidate ends where they would exceed it, so one that breaks less may go further.
    """

    accuracy: float
    change: float
    broken: float
    smooth_change_N: Tensor
    expected_broken: float

    @property
    def utility(self) -> float:
        """What orders candidates; the original has 0."""
        return float(self.smooth_change_N.mean())

    @property
    def standard_error(self) -> float:
        """Of the utility, over the inputs."""
        return _standard_error(self.smooth_change_N)

    @property
    def cautious_utility(self) -> float:
        """Utility less its standard error: what is gained grows slower on the way than the doubt about it.

        Of inputs that all failed before none could have been lost, and doubt is no reason to stay with the original.
        """
        return self.utility - (self.standard_error if self._something_worked else 0.0)

    @property
    def helps(self) -> bool:
        """Whether this is to be preferred to the original."""
        return self.cautious_utility > 0

    @property
    def clearly_helps(self) -> bool:
        """Whether utility is above the original's, 0, beyond chance. Of inputs that all failed before nobody can tell:
        none of them could have been lost."""
        return self._something_worked and _clearly_positive(self.smooth_change_N)

    @property
    def _something_worked(self) -> bool:
        return self.accuracy > self.change

    def clearly_beats(self, other: "ValidationScore") -> bool:
        """Whether utility is higher beyond chance, by the paired differences over the same inputs."""
        return _clearly_positive(self.smooth_change_N - other.smooth_change_N)

    def to_json(self) -> dict[str, float]:
        """The score as plain data."""
        names = ("accuracy", "change", "broken", "expected_broken", "utility")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class DivergenceScore:
    """Without labels: how far held-out inputs are from the healthy statistics, before and after a repair."""

    before: float
    after: float

    @property
    def utility(self) -> float:
        """The share of the divergence that is gone, beyond `REQUIRED_FALL`."""
        return 1 - self.after / self.before - REQUIRED_FALL if self.before else -REQUIRED_FALL

    @property
    def standard_error(self) -> float:
        """What statistics of a few inputs move by for no reason."""
        return REQUIRED_FALL

    @property
    def helps(self) -> bool:
        """Whether this is to be preferred to the original."""
        return self.utility > 0

    def clearly_beats(self, other: Any) -> bool:
        """Whether the divergence left is smaller by more than a tenth."""
        return self.after < (1 - REQUIRED_FALL) * other.after

    def to_json(self) -> dict[str, float]:
        """The score as plain data."""
        return {"divergence_before": self.before, "divergence_after": self.after, "utility": self.utility}


@dataclass(frozen=True)
class Guard:
    """Inputs that work today: features of them, and the shares of them that may be broken, and lost on balance."""

    features: Features
    max_broken: float = math.inf
    max_lost: float = math.inf


def score_logits(
    after_NK: Tensor, before_NK: Tensor, labels_N: Tensor, population_M: Tensor | None = None
) -> ValidationScore:
    """Compare new logits with the original's on the same inputs; `population_M` as for `expected_broken`."""
    margin_before, margin_after = margins_of(before_NK, labels_N), margins_of(after_NK, labels_N)
    width = MARGIN_SMOOTHING * float(margin_before.std(unbiased=False)) + 1e-6
    right_before, right_after = margin_before > 0, margin_after > 0
    broken = float((right_before & ~right_after).float().mean())
    change_N = torch.sigmoid(margin_after / width) - torch.sigmoid(margin_before / width)
    if not right_before.any():
        # What fails cannot be lost: that it fails more surely is no harm, and outweighed what was won on few inputs.
        change_N = change_N.clamp_min(0)
    return ValidationScore(
        accuracy=float(right_after.float().mean()),
        change=float(right_after.float().mean() - right_before.float().mean()),
        broken=broken,
        smooth_change_N=change_N,
        expected_broken=expected_broken(margin_before, margin_after, population_M),
    )


def expected_broken(before_N: Tensor, after_N: Tensor, population_M: Tensor | None = None) -> float:
    """The broken share to expect on other inputs, from the margins on these.

    Every input is given the changes of margin that the W inputs nearest in margin went through, right or wrong alike:
    of a few hundred inputs two or three are broken, and their number says little. It is asked of a population, by the
    original's margins on it, where one is given, and else of these inputs. Over more inputs than were measured the
    standard deviation is about a third of that of counting, around the same mean (docs/choices.md).
    """
    order = before_N.argsort()
    margin_N, change_N = before_N[order], (after_N - before_N)[order]
    count = len(order)
    asked_M = margin_N if population_M is None else population_M
    place_M = torch.searchsorted(margin_N, asked_M)
    width = min(count, max(MIN_NEIGHBOURS, min(MAX_NEIGHBOURS, round(NEIGHBOUR_SHARE * count))))
    first_M = (place_M - width // 2).clamp(0, count - width)
    moved_MW = asked_M[:, None] + change_N[first_M[:, None] + torch.arange(width)]
    return float(((moved_MW <= 0) & (asked_M[:, None] > 0)).float().mean())


def broken_slope(walk: Sequence[tuple[float, float]]) -> float:
    """Broken share per unit of α, from pairs of both: a line through the origin, fitted over the whole walk.

    A few hundred inputs cannot tell 1 % from 2 % at one α, but all of them together give the slope; the share grows
    no slower than the line (docs/choices.md), so small steps are not flattered.
    """
    return sum(alpha * broken for alpha, broken in walk) / sum(alpha**2 for alpha, _ in walk)


def run_tail(tail: Callable[[Tensor], Tensor], features: Features, device: torch.device) -> Tensor:
    """Logits [N, K] of the plain images, on the CPU."""
    with torch.inference_mode():
        parts = [tail(inputs) for inputs in features.plain(BATCH_SIZE, device)]
    return torch.cat(parts).float().cpu()


def score_tail(
    tail: Callable[[Tensor], Tensor], features: Features, device: torch.device, population_M: Tensor | None = None
) -> ValidationScore:
    """Score a model in eval mode from its cut onwards."""
    return score_logits(run_tail(tail, features, device), features.original_NK, features.labels_N, population_M)


def interpolate_(model: nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> None:
    """Put θ(α) = (1−α)·start + α·end into `model` (WiSE-FT; Wortsman et al., CVPR 2022, eq. 1).

    Inside a new branch only its scale is walked, from zero: half-way weights of a random start compute nothing useful.
    """
    blended = {}
    for name, final in end.items():
        whole = not final.is_floating_point() or (".branch." in name and not name.endswith(".branch.scale"))
        blended[name] = final if whole else torch.lerp(start[name], final, alpha)
    load_scoped_state(model, blended)


def choose_alpha_(
    model: nn.Module,
    tail: Callable[[Tensor], Tensor],
    features: Features,
    *,
    scope: Scope,
    start: dict[str, Tensor],
    max_broken: float,
    population_M: Tensor | None = None,
    guard: Guard | None = None,
    from_original: bool = False,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[float, ValidationScore]:
    """Leave `model` at the α of highest cautious utility whose expected broken share does not exceed `max_broken`, nor
    what the guard allows on its own inputs; a loss on balance there counts beyond its standard error.

    The α at which the expected share meets the limit is one of those tried, so nothing is lost between `alphas`. Where
    the walk comes `from_original`, nothing is broken at its beginning.
    """
    end = {name: value.clone() for name, value in scoped_state(model, scope).items()}
    device = next(model.parameters()).device
    broken: list[tuple[float, float]] = []
    lost: list[tuple[float, float]] = []

    def score_at(alpha: float) -> ValidationScore:
        interpolate_(model, start, end, alpha)
        if guard:
            guarded = score_tail(tail, guard.features, device)
            broken.append((alpha, guarded.expected_broken))
            # A loss of less than its standard error is none, as a gain is.
            lost.append((alpha, -guarded.utility - guarded.standard_error))
        return score_tail(tail, features, device, population_M)

    if from_original:
        begun = 0.0
        broken.append((0.0, 0.0))
        lost.append((0.0, 0.0))
    else:
        begun = score_at(0.0).expected_broken  # another start has broken something already
    walk = [(alpha, score_at(alpha)) for alpha in alphas]
    slope = broken_slope([(alpha, score.expected_broken - begun) for alpha, score in walk])
    last = max(0.0, max_broken - begun) / slope if slope > 0 else math.inf
    if guard:
        last = min(last, _last_allowed(broken, guard.max_broken), _last_allowed(lost, guard.max_lost))
    if last < max(alphas):
        walk = [pair for pair in walk if pair[0] < last] + [(last, score_at(last))]
    alpha, score = max(walk, key=lambda pair: pair[1].cautious_utility)
    interpolate_(model, start, end, alpha)
    return alpha, replace(score, expected_broken=begun + slope * alpha)


def _last_allowed(walk: Sequence[tuple[float, float]], limit: float) -> float:
    """The α, between two of the walk, at which the share first meets the limit.

    What works today breaks late and then fast: a line through the origin would stop long before. The share is told by
    margins, not counted: one answer of 512 that goes, and comes back further on, ended walks at a tenth of the way that
    lost nothing at its end (docs/choices.md).
    """
    for (alpha, share), (next_alpha, next_share) in pairwise(sorted(walk)):
        if share > limit:
            return alpha
        if next_share > limit:
            return alpha + (next_alpha - alpha) * (limit - share) / (next_share - share)
    return math.inf


def choose_alpha_by_divergence_(
    model: nn.Module,
    measure: Callable[[], float],
    *,
    scope: Scope,
    start: dict[str, Tensor],
    alphas: Sequence[float] = ALPHAS,
) -> tuple[float, DivergenceScore]:
    """Leave `model` at the α where `measure()`, the divergence of held-out inputs, is smallest: no labels needed."""
    end = {name: value.clone() for name, value in scoped_state(model, scope).items()}

    def measure_at(alpha: float) -> float:
        interpolate_(model, start, end, alpha)
        return measure()

    before = measure_at(0.0)
    after, alpha = min((measure_at(alpha), alpha) for alpha in alphas)
    interpolate_(model, start, end, alpha)
    return alpha, DivergenceScore(before, after)


def _clearly_positive(difference_N: Tensor) -> bool:
    """Whether the mean is two standard errors above zero: many candidates are compared with the first guess, and one of
    them would stand one above it by chance."""
    return float(difference_N.mean()) > CLEAR * _standard_error(difference_N)


def _standard_error(values_N: Tensor) -> float:
    return float(values_N.std(unbiased=False)) / len(values_N) ** 0.5
