"""`deeprepair`: give known images the style of failing ones, and train on both.

Yu, Qi, Guo, Juefei-Xu, Xie, Ma & Zhao, "DeepRepair: Style-Guided Repairing for Deep Neural Networks in the Real-World
Operational Environment", IEEE Transactions on Reliability 2021 (arXiv 2011.09884). Failing images are clustered by how
they failed; the style of each cluster is transferred to training images; the network is trained on these and on the
training images as they are. (Not the DeepRepair of arXiv 2203.13612, which weighs groups of classes.)

Only the abstract was readable to us, and the authors published no code. Choices:
- Style is the mean and covariance over channels of every band of a Haar wavelet decomposition, and its transfer
  whitening and colouring (Li et al., "Universal Style Transfer via Feature Transforms", NeurIPS 2017, section 3.2) of
  each band, as WCT² does in the layers of a VGG (Yoo et al., ICCV 2019). There is no VGG here: images alone are needed,
  whatever they show, and the result has exactly the style asked for, before it is cut to the range of pixels.
- Three clusters by k-means over means and log variances of the bands; a training image under each of them has the style
  of a failing image of the cluster, drawn by its seed.
- Training images are `replay`; repair images are learned as they are.
- Training is the service's (training.py): distilled, averaged, walked back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from archrepair_core.data.augment import View
from archrepair_core.features import Indices
from archrepair_core.match import known_scale_of
from archrepair_core.prefix_cache import INPUT, PrefixCache
from archrepair_core.scope import NETWORK
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.lesson import as_it_is
from archrepair_core.search.search import Arena, Trial, run_alone

NUM_CLUSTERS = 3
NUM_LEVELS = 2
MAX_FAILING = 200
# Added to variances: a band of a flat image has none.
RIDGE = 1e-8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """Of one image: mean [C] and covariance [C, C] of every band."""

    means: tuple[Floats, ...]
    covariances: tuple[Floats, ...]

    @cached_property
    def roots(self) -> tuple[Floats, ...]:
        """The square roots of the covariances."""
        return tuple(_root(covariance) for covariance in self.covariances)

    @property
    def vector(self) -> Floats:
        """What images are clustered by."""
        variances = [np.log(np.diag(covariance) + RIDGE) for covariance in self.covariances]
        return np.concatenate([*self.means, *variances])


@dataclass(frozen=True)
class StyleTransfer:
    """A PixelChange: each image gets one of the styles, drawn by its seed. `full_scale` is the value of white."""

    styles: tuple[Style, ...]
    full_scale: float

    def __call__(self, images_NHWC: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Changed copies, same shape and dtype."""
        restyled = [
            restyle(image / self.full_scale, self.styles[seed % len(self.styles)])
            for image, seed in zip(images_NHWC, seeds, strict=True)
        ]
        changed = np.clip(np.stack(restyled), 0, 1) * self.full_scale
        return (np.rint(changed) if images_NHWC.dtype == np.uint8 else changed).astype(images_NHWC.dtype)


def train_on_styles(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the network, trained on known images as they are and in the styles of failing ones."""
    if arena.is_stopped:
        return []
    cache = arena.starts["original"]
    arena = replace(arena, starts={"original": cache.seen_under(styled_views(cache, seed=arena.seed))})
    return run_alone(arena, Genotype(NETWORK), as_it_is, deadline=deadline, epochs=epochs)


def styled_views(cache: PrefixCache, *, seed: int) -> dict[str, tuple[View, ...]]:
    """The views there are; of replay the plain one, and one in the styles of each cluster, with the moves in turn."""
    repair = cache.splits["repair"]
    failing = np.flatnonzero(~cache.features(INPUT, "repair").passing_N)
    failing = np.sort(np.random.default_rng(seed).permutation(failing)[:MAX_FAILING])
    white = known_scale_of(repair.images, cache.preprocessing)
    styles = [style_of(image / white) for image in repair.images[failing]]
    plain, *moves = cache.views["replay"]
    styled = tuple(
        replace(
            (moves or [plain])[number % len(moves or [plain])],
            change=StyleTransfer(tuple(styles[row] for row in members), white),
            seed=number + 1,
        )
        for number, members in enumerate(clusters_of(styles, seed=seed))
    )
    return {**cache.views, "replay": (plain, *styled)}


def clusters_of(styles: Sequence[Style], *, seed: int) -> list[Indices]:
    """Places of like styles, group by group; of few there are fewer groups."""
    vectors = np.stack([style.vector for style in styles])
    count = min(NUM_CLUSTERS, len(np.unique(vectors, axis=0)))
    of_N = KMeans(count, n_init=10, random_state=seed).fit(vectors).labels_
    return [np.flatnonzero(of_N == number) for number in range(count)]


def style_of(image_HWC: Floats) -> Style:
    """The style of an image."""
    flat = [band.reshape(-1, band.shape[2]) for band in split_bands(image_HWC)]
    means = tuple(band.mean(0) for band in flat)
    covariances = tuple((band - mean).T @ (band - mean) / len(band) for band, mean in zip(flat, means, strict=True))
    return Style(means, covariances)


def restyle(image_HWC: Floats, style: Style) -> Floats:
    """The image with every band whitened and then coloured by `style`."""
    bands = []
    own = style_of(image_HWC)
    for number, band in enumerate(split_bands(image_HWC)):
        white = _root(own.covariances[number], inverse=True)
        coloured = (band - own.means[number]) @ (white @ style.roots[number])
        bands.append(coloured + style.means[number])
    return join_bands(bands)[: image_HWC.shape[0], : image_HWC.shape[1]]


def split_bands(image_HWC: Floats) -> list[Floats]:
    """The bands of an orthonormal Haar decomposition: three of each level, finest first, and what is left.

    Odd edges are mirrored to the next multiple of the coarsest step.
    """
    step = 2**NUM_LEVELS
    missing = [(0, -edge % step) for edge in image_HWC.shape[:2]]
    low, bands = np.pad(image_HWC, [*missing, (0, 0)], mode="symmetric"), []
    for _ in range(NUM_LEVELS):
        a, b, c, d = low[::2, ::2], low[::2, 1::2], low[1::2, ::2], low[1::2, 1::2]
        bands += [(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
        low = (a + b + c + d) / 2
    return [*bands, low]


def join_bands(bands: Sequence[Floats]) -> Floats:
    """The image whose bands these are, with its edges as they were padded."""
    low = bands[-1]
    for level in reversed(range(NUM_LEVELS)):
        across, down, both = bands[3 * level : 3 * level + 3]
        joined = np.empty((2 * low.shape[0], 2 * low.shape[1], low.shape[2]))
        joined[::2, ::2] = (low + across + down + both) / 2
        joined[::2, 1::2] = (low - across + down - both) / 2
        joined[1::2, ::2] = (low + across - down - both) / 2
        joined[1::2, 1::2] = (low - across - down + both) / 2
        low = joined
    return low


def _root(covariance: Floats, *, inverse: bool = False) -> Floats:
    """The symmetric square root of a covariance, or its inverse."""
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, 0) + RIDGE)
    return np.asarray(vectors * (1 / roots if inverse else roots)) @ vectors.T
