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
- Training images are `replay`, drawn as they are as often as in the styles of one cluster; repair images are learned as
  they are.
- Training is the service's (training.py): distilled, averaged, walked back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from torch import nn

from archrepair_core.data.augment import View
from archrepair_core.features import Features, Indices, StreamedRows
from archrepair_core.match import known_scale_of
from archrepair_core.prefix_cache import PrefixCache
from archrepair_core.scope import NETWORK
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.lesson import Tail
from archrepair_core.search.search import run_alone
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.training import TrainingPlan

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
        styles = [self.styles[seed % len(self.styles)] for seed in seeds]
        changed = np.clip(restyle(images_NHWC / self.full_scale, styles), 0, 1) * self.full_scale
        return (np.rint(changed) if images_NHWC.dtype == np.uint8 else changed).astype(images_NHWC.dtype)


def train_on_styles(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the network, trained on known images as they are and in the styles of failing ones."""
    if arena.is_stopped:
        return []
    cache = arena.starts["original"]
    # What is stored is stored before anything is learned, whatever the time: here only the images as they are.
    plain = cache.seen_under({**cache.views, "replay": cache.views["replay"][:1]})

    @contextmanager
    def lesson(
        _model: nn.Module, _tail: Tail, features: Features, plan: TrainingPlan
    ) -> Iterator[tuple[Features, TrainingPlan]]:
        views, replay = styled_views(cache, seed=arena.seed), cache.splits["replay"]
        styled = StreamedRows(replay, cache.preprocessing, views, lambda inputs: inputs, cache.device)
        yield replace(features, parts=(*features.parts[:-1], styled)), plan

    return run_alone(
        replace(arena, starts={"original": plain}), Genotype(NETWORK), lesson, deadline=deadline, epochs=epochs
    )


def styled_views(cache: PrefixCache, *, seed: int) -> tuple[View, ...]:
    """Of replay the plain view, and one in the styles of each cluster, with the moves there are in turn."""
    repair = cache.splits["repair"]
    failing = np.flatnonzero(cache.original_logits["repair"].argmax(1).numpy() != repair.labels)
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
    return (plain, *styled)


def clusters_of(styles: Sequence[Style], *, seed: int) -> list[Indices]:
    """Places of like styles, group by group; of few there are fewer groups."""
    vectors = np.stack([style.vector for style in styles])
    count = min(NUM_CLUSTERS, len(np.unique(vectors, axis=0)))
    of_N = KMeans(count, n_init=10, random_state=seed).fit(vectors).labels_
    return [np.flatnonzero(of_N == number) for number in range(count)]


def style_of(image_HWC: Floats) -> Style:
    """The style of an image."""
    means, covariances = zip(*(_moments(band[None]) for band in split_bands(image_HWC)), strict=True)
    return Style(tuple(mean[0] for mean in means), tuple(covariance[0] for covariance in covariances))


def restyle(images_NHWC: Floats, styles: Sequence[Style]) -> Floats:
    """The images with every band whitened and then coloured, each by its own of `styles`."""
    bands = []
    for number, band in enumerate(split_bands(images_NHWC)):
        means_NC, covariances_NCC = _moments(band)
        roots_NCC = _root(covariances_NCC, inverse=True) @ np.stack([style.roots[number] for style in styles])
        wanted_NC = np.stack([style.means[number] for style in styles])
        flat = band.reshape(len(band), -1, band.shape[-1]) - means_NC[:, None]
        bands.append((flat @ roots_NCC + wanted_NC[:, None]).reshape(band.shape))
    return join_bands(bands)[:, : images_NHWC.shape[1], : images_NHWC.shape[2]]


def _moments(band_NHWC: Floats) -> tuple[Floats, Floats]:
    """Mean [N, C] and covariance [N, C, C] over the places of each image."""
    flat = band_NHWC.reshape(len(band_NHWC), -1, band_NHWC.shape[-1])
    mean = flat.mean(1)
    apart = flat - mean[:, None]
    return mean, apart.transpose(0, 2, 1) @ apart / flat.shape[1]


def split_bands(images_HWC: Floats) -> list[Floats]:
    """The bands of an orthonormal Haar decomposition: three of each level, finest first, and what is left.

    Of one image or of several [..., H, W, C]. Odd edges are mirrored to the next multiple of the coarsest step.
    """
    step = 2**NUM_LEVELS
    missing = [(0, -edge % step) for edge in images_HWC.shape[-3:-1]]
    low, bands = np.pad(images_HWC, [*[(0, 0)] * (images_HWC.ndim - 3), *missing, (0, 0)], mode="symmetric"), []
    for _ in range(NUM_LEVELS):
        rows = (low[..., ::2, :, :], low[..., 1::2, :, :])
        a, b, c, d = (row[..., start::2, :] for row in rows for start in (0, 1))
        bands += [(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
        low = (a + b + c + d) / 2
    return [*bands, low]


def join_bands(bands: Sequence[Floats]) -> Floats:
    """The images whose bands these are, with their edges as they were padded."""
    low = bands[-1]
    for level in reversed(range(NUM_LEVELS)):
        across, down, both = bands[3 * level : 3 * level + 3]
        *some, height, width, channels = low.shape
        joined = np.empty((*some, 2 * height, 2 * width, channels))
        joined[..., ::2, ::2, :] = (low + across + down + both) / 2
        joined[..., ::2, 1::2, :] = (low - across + down - both) / 2
        joined[..., 1::2, ::2, :] = (low + across - down - both) / 2
        joined[..., 1::2, 1::2, :] = (low - across - down + both) / 2
        low = joined
    return low


def _root(covariance: Floats, *, inverse: bool = False) -> Floats:
    """The symmetric square root of a covariance, or its inverse; of several at once [..., C, C]."""
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, 0) + RIDGE)[..., None, :]
    return np.asarray(vectors * (1 / roots if inverse else roots)) @ np.swapaxes(vectors, -1, -2)
