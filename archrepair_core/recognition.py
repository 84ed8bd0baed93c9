"""What was recognised in the field, and known images passed through it: the answer of match.py and its use."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from archrepair_core.data.augment import View
from archrepair_core.data.corruptions import KINDS, Corruption
from archrepair_core.data.images import LabelledImages, PixelChunk, SampleStream, sample_digest, store

NONE = "none"
# How far to either side of the recognised parameter the replay varies, as a share of the way to zero or of a severity.
VARIATION = 0.15
BATCH_SIZE = 100


@dataclass(frozen=True)
class Candidate:
    """One kind at the parameter that suits it best, and how far the field is from it, in units of noise."""

    kind: str
    parameter: float
    distance: float


@dataclass(frozen=True)
class Recognition:
    """The nearest candidate, whether it explains the field (`fits`), and how sure that is.

    `sureness` is the share of resampled field sets with the same winner. `divergences` are the mean KL over layers, in
    nats, of the field's fingerprint in the model from the known images' as they are, through the corruption, and
    between two halves of the field. `ranking` holds the best candidate of each kind that was measured.
    """

    kind: str
    parameter: float
    fits: bool
    distance: float
    identity_distance: float
    sureness: float
    ranking: tuple[Candidate, ...]
    divergences: Mapping[str, float]
    num_field: int
    full_scale: float

    @property
    def corruption(self) -> Corruption | None:
        """The change of pixels that was recognised; None when the field looks like the known images."""
        return None if self.kind == NONE else Corruption(self.kind, self.parameter, self.full_scale)

    def describe(self) -> str:
        """One sentence for progress and report."""
        numbers = f"{self.distance:.1f} noise units away, untouched images {self.identity_distance:.1f}"
        if self.corruption is None:
            return f"the field looks like the known images ({numbers})"
        if not self.fits:
            return f"no known corruption fits; nearest is {self.corruption.describe()}, {numbers}"
        return f"{self.corruption.describe()}, {100 * self.sureness:.0f} % sure, {numbers}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report."""
        return {
            "kind": self.kind,
            "parameter": self.parameter,
            "unit": None if self.kind == NONE else KINDS[self.kind].unit,
            "fits": self.fits,
            "sureness": self.sureness,
            "distance": self.distance,
            "identity_distance": self.identity_distance,
            "divergences": dict(self.divergences),
            "num_field": self.num_field,
            "ranking": [vars(candidate) for candidate in self.ranking],
            "summary": self.describe(),
        }


def match_views(recognition: Recognition, moves: Sequence[View], *, plain: int = 1) -> tuple[View, ...]:
    """Views for known images: through the recognised corruption, its parameter varied, and `plain` times as often as
    they are.

    Half of them untouched kept what was known: it broke a third of what one in eight did (docs/choices.md). `moves` are
    the harmless ones; each view takes the next of them. Empty when nothing fits.
    """
    if not recognition.fits:
        return ()
    low, high = _spread(recognition)
    middle = recognition.parameter
    changed = [
        replace(move, change=Corruption(recognition.kind, parameter, recognition.full_scale), seed=seed)
        for seed, (move, parameter) in enumerate(zip(cycle(moves), (middle, low, high, middle), strict=False), start=1)
    ]
    return (*changed, *islice(cycle(moves), plain * len(changed)))


def _spread(recognition: Recognition) -> tuple[float, float]:
    kind = KINDS[recognition.kind]
    by_severity = kind.unit == "severity"
    reach = 0.5 if by_severity else VARIATION * abs(recognition.parameter)
    low, high = recognition.parameter - reach, recognition.parameter + reach
    return max(low, kind.limits[0]), min(high, kind.limits[1])


def pass_through(
    images: LabelledImages, corruption: Corruption, *, name: str, work_dir: Path, seed: int
) -> LabelledImages:
    """Labelled images through a corruption, as a dataset of its own in a memory-mapped file in `work_dir`."""

    def chunks() -> Iterable[PixelChunk]:
        for start in range(0, len(images), BATCH_SIZE):
            pixels = images.images[start : start + BATCH_SIZE]
            pixels = corruption(pixels, range(seed + start, seed + start + len(pixels)))
            yield PixelChunk(pixels, [sample_digest(image) for image in pixels])

    stream = SampleStream(images.images.shape, images.images.dtype, iter(chunks()), images.labels, images.format)
    return store(stream, name=name, source=f"{images.source} through {corruption.describe()}", work_dir=work_dir)
