"""What the world does to the inputs: recognise the corruption behind unlabelled field images, and replay through it.

Known images are passed through every candidate, and the candidate whose images look most like the field's is the
answer. Looks are compared by the statistics of pixel_statistics.py, whitened by their spread within a candidate
(Fisher's linear discriminant): where both were tried, they named the kind more often than the mean divergence of the
network's own fingerprint did (docs/measurements.md). What the model makes of the answer is told by that fingerprint.

Distances are in units of noise: 1 is how far two sets of known images of these sizes stand apart.

Legend: N field images, M known images, F statistics.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from archrepair_core.data.corruptions import COMMON_KINDS, KINDS, SEVERITIES, Corruption, at_severity
from archrepair_core.data.images import ImageRows
from archrepair_core.data.pixel_statistics import MIN_EDGE, look
from archrepair_core.data.preprocessing import SCALE_LIMITS, to_tensor
from archrepair_core.errors import DatasetError
from archrepair_core.fingerprint import divergence, fingerprinted_layers, measure_fingerprint
from archrepair_core.recognition import NONE, Candidate, Recognition
from archrepair_core.spec import Preprocessing

MIN_FIELD = 8
MAX_FIELD = 200
# Known images per candidate: enough for the right kind to be among the finalists, and enough to choose among these.
SCREENED, MEASURED = 40, 150
# The same for images above `MANY_PIXELS`, where a corruption takes milliseconds.
SCREENED_LARGE, MEASURED_LARGE = 16, 48
MANY_PIXELS = 64 * 64
FINALISTS = 4
# A kind this many times as far as the nearest is no finalist.
HOPELESS = 3.0
HALVINGS = 2
SHRINKAGE = 0.3
# What hardly varies among the images that were looked at may in the next one: its scale is not to be trusted.
MIN_SPREAD = 0.01
RESAMPLES = 200
# The nearest corruption fits when it explains this share of what sets the field apart; the smaller one will do where
# what is left is within so many units of noise: mixtures of two stand at 10, a painted-over band at 100 and more.
EXPLAINED, MOSTLY_EXPLAINED, FAR = 0.5, 0.75, 50.0
BATCH_SIZE = 100

# Between and beyond the severities, and kinds that have none.
EXTRA_CANDIDATES: dict[str, tuple[float, ...]] = {
    "jpeg_compression": (10, 20, 30, 75, 85, 90, 95),
    "gaussian_blur": (0.8, 1.2, 1.6, 2.4),
    "resample": (0.8, 0.6, 0.4),
    "gamma": (0.5, 0.7, 1.4, 2.0),
    "exposure": (0.4, 0.6, 0.8, 1.25, 1.6),
    "saturation": (0.0, 0.5, 1.5, 2.0),
    "warmth": (0.8, 0.9, 1.1, 1.25),
    "rotation": (-60, -45, -30, -20, -10, 10, 20, 30, 45, 60),
}
COLOUR_KINDS = ("saturation", "warmth")


def full_scale_of(images: ImageRows, preprocessing: Preprocessing) -> float | None:
    """The value of white: 255 for bytes, else by the spec's scale or by the range of some images; None if unknown."""
    if images.dtype == np.uint8:
        return 255.0
    if preprocessing.scale in SCALE_LIMITS:
        return SCALE_LIMITS[preprocessing.scale]
    some = images[: min(len(images), BATCH_SIZE)]
    if some.min() < 0 or some.max() > 255:
        return None
    return 1.0 if some.max() <= 1 else 255.0


def known_scale_of(images: ImageRows, preprocessing: Preprocessing) -> float:
    """The value of white, for methods that change pixels. Raises DatasetError where nobody knows it."""
    white = full_scale_of(images, preprocessing)
    if white is None:
        raise DatasetError(
            "scale_unknown",
            "the images are floats whose black and white are unknown (preprocessing.scale is auto), and this method "
            "changes pixels",
            hint="send uint8 images, or floats and preprocessing.scale 0-1 or 0-255",
        )
    return white


def why_not(field_images: ImageRows, known: ImageRows, preprocessing: Preprocessing) -> str | None:
    """Why nothing can be recognised in these images; None when it can."""
    for images, name in ((field_images, "repair"), (known, "replay")):
        _, height, width, channels = images.shape
        if channels not in (1, 3) or channels != known.shape[3]:
            return f"the {name} images have {channels} channels, and corruptions are of 1 or 3, the same in both sets"
        if min(height, width) < MIN_EDGE:
            return f"the {name} images are {height}×{width}, and edges of less than {MIN_EDGE} pixels show too little"
        if full_scale_of(images, preprocessing) is None:
            return f"the {name} images are floats whose black and white are unknown (preprocessing.scale is auto)"
        if len(images) < MIN_FIELD:
            return f"there are {len(images)} {name} images, and {MIN_FIELD} are the least"
    return None


def candidates(edge: int, channels: int, *, full_scale: float) -> list[Corruption]:
    """Every corruption that is tried on images whose shorter edge is `edge` pixels."""
    common = [
        at_severity(kind, severity, edge, full_scale=full_scale) for kind in COMMON_KINDS for severity in SEVERITIES
    ]
    extra = [
        Corruption(kind, parameter, full_scale)
        for kind, parameters in EXTRA_CANDIDATES.items()
        for parameter in parameters
        if channels == 3 or kind not in COLOUR_KINDS
    ]
    return list(dict.fromkeys(common + extra))


def recognise(
    model: nn.Module,
    field_images: ImageRows,
    known: ImageRows,
    *,
    preprocessing: Preprocessing,
    seed: int = 0,
    looks: dict[Corruption | None, torch.Tensor] | None = None,
    on_progress: Callable[[str], None] = lambda _message: None,
) -> Recognition:
    """Which corruption turns `known` images into such as `field_images`; labels are not needed, 30 images will do.

    Ask `why_not` first: images it finds fault with are not understood. `looks` is filled with what is seen of the known
    images, and saves the time when another field is held against the same ones under the same seed.
    """
    sight = _Sight(known, field_images, preprocessing, seed, {} if looks is None else looks)
    looks_NF = sight.look_at(field_images, sight.field_rows)
    tried = candidates(min(known.shape[1:3]), known.shape[3], full_scale=sight.full_scale)
    on_progress(f"comparing {len(looks_NF)} field images with {len(tried)} corruptions of known images")
    groups = [sight.through(change, sight.num_screened) for change in tried]
    whiten = _Whitening.of([sight.through(None), *groups])
    screened = {change: whiten.distance(looks_NF, sight.through(change, sight.num_screened)) for change in tried}
    kinds = _finalists(screened)
    on_progress(f"refining {', '.join(kinds)}")
    finalists = [
        _refine(kind, screened, lambda change: whiten.distance(looks_NF, sight.through(change))) for kind in kinds
    ]
    return _conclude(model, sight, whiten, looks_NF, finalists)


@dataclass
class _Sight:
    """Both sets through the same eyes; what has been looked at is remembered."""

    known: ImageRows
    shown: ImageRows
    preprocessing: Preprocessing
    seed: int
    _seen: dict[Corruption | None, torch.Tensor]

    def __post_init__(self) -> None:
        large = self.known.shape[1] * self.known.shape[2] > MANY_PIXELS
        screened, measured = (SCREENED_LARGE, MEASURED_LARGE) if large else (SCREENED, MEASURED)
        self.known_rows = self._draw(self.known, measured)
        self.field_rows = self._draw(self.shown, MAX_FIELD)
        self.num_screened = min(screened, len(self.known_rows))
        self.full_scale = full_scale_of(self.known, self.preprocessing) or 255.0

    def _draw(self, images: ImageRows, count: int) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(len(images))[:count]

    def changed(self, change: Corruption | None, start: int, stop: int) -> np.ndarray:
        """Known images `start` to `stop` through a corruption; each keeps its seed whatever the corruption."""
        pixels = self.known[self.known_rows[start:stop]]
        return pixels if change is None else change(pixels, range(self.seed + start, self.seed + start + len(pixels)))

    def through(self, change: Corruption | None, count: int | None = None) -> torch.Tensor:
        """The looks [M, F] of known images through a corruption."""
        count = len(self.known_rows) if count is None else count
        seen = self._seen.get(change)
        have = 0 if seen is None else len(seen)
        if have < count:
            more = self._look(self.changed(change, have, count))
            self._seen[change] = more if seen is None else torch.cat([seen, more])
        return self._seen[change][:count]

    def look_at(self, images: ImageRows, rows: np.ndarray) -> torch.Tensor:
        """The looks [N, F] of some images as they are."""
        return torch.cat([self._look(images[rows[i : i + BATCH_SIZE]]) for i in range(0, len(rows), BATCH_SIZE)])

    def _look(self, pixels: np.ndarray) -> torch.Tensor:
        if self.known.shape[1:] == self.shown.shape[1:]:
            white = 255.0 if pixels.dtype == np.uint8 else self.full_scale
            return look(torch.from_numpy(pixels).float() / white).double()
        # Of different sizes, they can only be compared as the model sees them.
        plain = self.preprocessing.model_copy(update={"mean": None, "std": None, "scale": "auto"})
        white = 1.0 if pixels.dtype == np.uint8 else self.full_scale
        return look(to_tensor(pixels, plain).permute(0, 2, 3, 1) / white).double()


@dataclass(frozen=True)
class _Whitening:
    """Divides by the spread of looks within one candidate, so that the motif weighs little."""

    transform_FF: torch.Tensor

    @staticmethod
    def of(groups: Iterable[torch.Tensor]) -> "_Whitening":
        """From looks [N, F] by candidate, each about its own mean; shrunk, so that it can be inverted."""
        within = torch.cat([group - group.mean(0) for group in groups])
        spread = within.std(0) + MIN_SPREAD
        correlation = torch.cov((within / spread).T)
        shrunk = (1 - SHRINKAGE) * correlation + SHRINKAGE * torch.eye(len(correlation), dtype=within.dtype)
        return _Whitening(torch.linalg.cholesky(torch.linalg.inv(shrunk)) / spread[:, None])

    def mean(self, looks: torch.Tensor) -> torch.Tensor:
        """Mean [F] of looks [N, F], whitened."""
        return looks.mean(0) @ self.transform_FF

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> float:
        """Squared distance of the two means, in squares of the spread within a candidate."""
        return float((self.mean(a) - self.mean(b)).square().sum())


def _finalists(screened: Mapping[Corruption, float]) -> list[str]:
    """The nearest kinds, nearest first; at least two."""
    nearest: dict[str, float] = {}
    for change in sorted(screened, key=screened.__getitem__):
        nearest.setdefault(change.kind, screened[change])
    limit = HOPELESS * min(nearest.values())
    return [kind for i, (kind, far) in enumerate(nearest.items()) if i < 2 or (i < FINALISTS and far <= limit)]


def _refine(
    kind: str, screened: Mapping[Corruption, float], distance: Callable[[Corruption], float]
) -> tuple[Corruption, float]:
    """The best parameter of a kind: from the best screened one and its neighbours, by halving the step."""
    grid = sorted((change for change in screened if change.kind == kind), key=lambda change: change.parameter)
    best = min(grid, key=screened.__getitem__)
    place = grid.index(best)
    low = grid[place - 1].parameter if place else KINDS[kind].limits[0]
    high = grid[place + 1].parameter if place + 1 < len(grid) else KINDS[kind].limits[1]
    near = [grid[i] for i in (place - 1, place, place + 1) if 0 <= i < len(grid)]
    found = {change: distance(change) for change in near}
    for _ in range(HALVINGS):
        best = min(found, key=found.__getitem__)
        middles = ((best.parameter + end) / 2 for end in (low, high))
        for parameter in (round(middle) if KINDS[kind].in_steps else middle for middle in middles):
            change = Corruption(kind, parameter, best.full_scale)
            found[change] = found.get(change) or distance(change)
        low, high = _around(min(found, key=found.__getitem__), found, low, high)
    best = min(found, key=found.__getitem__)
    return best, found[best]


def _around(best: Corruption, found: Mapping[Corruption, float], low: float, high: float) -> tuple[float, float]:
    """The nearest parameters below and above the best that were looked at, or the ends."""
    parameters = [change.parameter for change in found]
    below = [parameter for parameter in parameters if parameter < best.parameter]
    above = [parameter for parameter in parameters if parameter > best.parameter]
    return max(below, default=min(low, best.parameter)), min(above, default=max(high, best.parameter))


def _conclude(
    model: nn.Module,
    sight: _Sight,
    whiten: _Whitening,
    looks_NF: torch.Tensor,
    finalists: Sequence[tuple[Corruption, float]],
) -> Recognition:
    plain_MF = sight.through(None)
    noise = _noise(whiten, plain_MF, len(looks_NF), seed=sight.seed)
    unit = float(noise.mean())
    identity = whiten.distance(looks_NF, plain_MF)
    contenders: list[tuple[Corruption | None, float]] = [(None, identity), *finalists]
    contenders.sort(key=lambda pair: pair[1])
    winner, distance = contenders[0]
    divergences = _divergences(model, sight, winner)
    return Recognition(
        kind=winner.kind if winner else NONE,
        parameter=winner.parameter if winner else 0.0,
        fits=winner is not None
        and identity > float(noise.quantile(0.95))
        and explains(distance / unit, identity / unit)
        and explains_to_model(divergences),
        distance=distance / unit,
        identity_distance=identity / unit,
        sureness=_sureness(whiten, looks_NF, [sight.through(change) for change, _ in contenders], seed=sight.seed),
        ranking=tuple(
            Candidate(change.kind if change else NONE, change.parameter if change else 0.0, far / unit)
            for change, far in contenders
        ),
        divergences=divergences,
        num_field=len(looks_NF),
        full_scale=sight.full_scale,
    )


def explains(distance: float, identity: float) -> bool:
    """Whether a corruption this far from the field says what happened, where untouched images are `identity` away."""
    share = EXPLAINED if distance <= FAR else MOSTLY_EXPLAINED
    return identity - max(distance, 1.0) >= share * (identity - 1.0)


def explains_to_model(divergences: Mapping[str, float]) -> bool:
    """Whether the model too finds the field nearer to known images through the corruption: of what sets its fingerprint
    apart, beyond what sets two halves of the field apart, at least half is gone.

    Pictures that hung askew looked more like an elastic transform than like anything else that is known. Replayed
    through it, they taught a network less than half of what their own labels did (docs/choices.md).
    """
    beyond_chance = divergences["identity"] - divergences["field_halves"]
    left = max(0.0, divergences["recognised"] - divergences["field_halves"])
    return divergences["recognised"] < divergences["identity"] and left <= EXPLAINED * max(0.0, beyond_chance)


def _noise(whiten: _Whitening, plain_MF: torch.Tensor, num_field: int, *, seed: int) -> torch.Tensor:
    """Distances between disjoint draws of the known images themselves, scaled to the sizes that are compared."""
    whitened, random = plain_MF @ whiten.transform_FF, np.random.default_rng(seed)
    count = len(whitened)
    part = min(num_field, count // 2)
    distances = []
    for _ in range(RESAMPLES):
        order = random.permutation(count)
        one, other = whitened[order[:part]].mean(0), whitened[order[part:]].mean(0)
        distances.append((one - other).square().sum())
    # A mean of n deviates by 1/n in square, and both means deviate.
    return torch.stack(distances) * (1 / num_field + 1 / count) / (1 / part + 1 / (count - part))


def _sureness(whiten: _Whitening, looks_NF: torch.Tensor, looks: Sequence[torch.Tensor], *, seed: int) -> float:
    """The share of field sets drawn again with replacement that the first of `looks` is nearest to."""
    means = torch.stack([whiten.mean(one) for one in looks])
    whitened, count = looks_NF @ whiten.transform_FF, len(looks_NF)
    draws = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    resampled = torch.stack([whitened[draw].mean(0) for draw in draws])
    return float((torch.cdist(resampled, means).argmin(1) == 0).double().mean())


def _divergences(model: nn.Module, sight: _Sight, winner: Corruption | None) -> dict[str, float]:
    """Mean KL over layers of the field's fingerprint from the known images', plain and through the winner."""
    layers, preprocessing = fingerprinted_layers(model), sight.preprocessing
    starts = range(0, len(sight.known_rows), BATCH_SIZE)

    def of_field(rows: np.ndarray) -> Mapping[str, Any]:
        batches = (rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE))
        return measure_fingerprint(model, (to_tensor(sight.shown[batch], preprocessing) for batch in batches), layers)

    def of_known(change: Corruption | None) -> Mapping[str, Any]:
        pixels = (sight.changed(change, i, min(i + BATCH_SIZE, len(sight.known_rows))) for i in starts)
        return measure_fingerprint(model, (to_tensor(batch, preprocessing) for batch in pixels), layers)

    def between(observed: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
        return float(np.mean([float(divergence(observed[name], reference[name])) for name in observed]))

    whole, plain = of_field(sight.field_rows), of_known(None)
    halves = [of_field(part) for part in np.array_split(sight.field_rows, 2)]
    recognised = plain if winner is None else of_known(winner)
    return {
        "identity": between(whole, plain),
        "recognised": between(whole, recognised),
        "field_halves": between(halves[0], halves[1]),
    }
