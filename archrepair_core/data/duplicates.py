"""Images that stand in the data twice: pixel for pixel, or so alike that a re-encoding or a resize would explain it.

A perceptual hash proposes pairs and small pictures confirm them. The hash is dHash (N. Krawetz, "Kind of Like That",
2013): 64 bits, each whether a pixel of the 9×8 grey image is brighter than its left neighbour. imagehash computes it
for one PIL image at a time and has no search; arrays need both by the chunk.

Legend: N, M images, P pairs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch.nn import functional as F

from archrepair_core.data.images import LabelledImages
from archrepair_core.data.split import DataWarning

# Smaller pictures look alike without being copies: two people write the same 8×8 zero.
MIN_SIDE = 16
# Of every set as many, evenly spaced: the cost stays at seconds, the memory at a few megabytes.
MAX_COMPARED = 20_000
# Four bands of 16 bits: hashes that differ in at most three bits agree in one of them.
NUM_BANDS, BAND_BITS, MAX_BITS = 4, 16, 3
CHUNK = 1024
MAX_PAIRS_PER_CHUNK = 1 << 20
# The confirming pictures: side, the largest mean difference in grey levels of 255, the least correlation.
SMALL_SIDE, MAX_DIFFERENCE, MIN_CORRELATION = 16, 6.0, 0.98
# Grey levels by which a picture must vary: a blank one is like every other blank one.
MIN_CONTRAST = 4.0
MAX_EXAMPLES = 5

Pairs = np.ndarray


@dataclass(frozen=True)
class Looks:
    """What is compared of a set: `rows` in it [N], their hashes [N] and small grey pictures [N, 256] of 0–255."""

    rows: np.ndarray
    hashes: np.ndarray
    pictures: np.ndarray


@dataclass(frozen=True)
class Duplicates:
    """Of one set (`second` is None) or between two. Counts are images of `first` that have a twin; `compared` says how
    many of `first` were looked at for near ones, `examples` are pairs of rows in the sources."""

    first: str
    second: str | None
    exact: int
    near: int
    compared: int
    examples: tuple[tuple[int, int], ...]


def find_duplicates(parts: Mapping[str, LabelledImages]) -> tuple[Duplicates, ...]:
    """Within every set and between every two. Near ones are no exact ones."""
    looks = {role: look_at(images) for role, images in parts.items()}
    within = [replace(_between(parts[role], parts[role], looks[role], looks[role]), second=None) for role in parts]
    across = [_between(parts[a], parts[b], looks[a], looks[b]) for a, b in combinations(parts, 2)]
    return (*within, *across)


def warn_of(duplicates: Iterable[Duplicates]) -> list[DataWarning]:
    """What looks so alike on both sides of the verdict that it may be one picture: a warning, for nobody knows."""
    return [
        DataWarning(
            "near_duplicates",
            f"{found.near} images of {found.first} look almost like images of {found.second}, e.g. row "
            f"{found.examples[0][0]} like row {found.examples[0][1]}",
            "if these are copies, the verdict is better than the repair: split the data by what they were taken of",
        )
        for found in duplicates
        if found.near
        and found.second
        and "test" in (found.first, found.second)
        and {found.first, found.second} & {"repair", "validation", "replay"}
    ]


def _between(first: LabelledImages, second: LabelledImages, looks: Looks, other: Looks) -> Duplicates:
    same = first is second
    if same:
        exact = len(first) - len(np.unique(first.sample_digests))
    else:
        exact = int(np.isin(first.sample_digests, second.sample_digests).sum())
    pairs = near_pairs(looks, other, same=same)
    pairs = pairs[first.sample_digests[pairs[:, 0]] != second.sample_digests[pairs[:, 1]]]
    examples = [(int(first.images.rows[a]), int(second.images.rows[b])) for a, b in pairs[:MAX_EXAMPLES]]
    near = len(np.unique(pairs[:, 0]))
    return Duplicates(first.name, second.name, exact, near, len(looks.rows), tuple(examples))


def look_at(images: LabelledImages) -> Looks:
    """Hashes and small pictures of what is worth comparing, read by the chunk."""
    height, width = images.images.shape[1:3]
    if min(height, width) < MIN_SIDE:
        empty = np.empty(0, dtype=np.int64)
        return Looks(empty, empty.astype(np.uint64), np.empty((0, SMALL_SIDE**2), np.uint8))
    wanted = np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_COMPARED)).round().astype(np.int64))
    scale = 1.0 if images.images.dtype == np.uint8 else _to_bytes(images.images[:CHUNK])
    seen = [_look(images.images[rows], scale) for rows in np.array_split(wanted, -(-len(wanted) // CHUNK))]
    hashes, pictures = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    varied = pictures.std(1) >= MIN_CONTRAST
    return Looks(wanted[varied], hashes[varied], pictures[varied])


def _to_bytes(images: np.ndarray) -> float:
    """The factor that brings floats to about 0–255, whatever they were normalised by: only differences count."""
    spread = float(images.max() - images.min())
    return 255.0 / spread if spread > 0 else 1.0


def _look(images_BHWC: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    grey = torch.from_numpy(np.asarray(images_BHWC.mean(3, dtype=np.float32) * scale)).unsqueeze(1)
    if scale != 1.0:
        grey = grey - grey.amin()
    tiny = F.adaptive_avg_pool2d(grey, (8, 9)).squeeze(1).numpy()
    bits = (tiny[:, :, 1:] > tiny[:, :, :-1]).reshape(len(tiny), 64)
    hashes = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)
    small = F.adaptive_avg_pool2d(grey, SMALL_SIDE).flatten(1).clamp(0, 255).round().byte().numpy()
    return hashes, small


def near_pairs(first: Looks, second: Looks, *, same: bool) -> Pairs:
    """Rows [P, 2] of images that are near; of the `same` set each pair once."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for places in _candidates(first.hashes, second.hashes):
        kept = places[places[:, 0] < places[:, 1]] if same else places
        apart = np.bitwise_count(first.hashes[kept[:, 0]] ^ second.hashes[kept[:, 1]])
        kept = kept[apart <= MAX_BITS]
        found.append(kept[_are_alike(first.pictures[kept[:, 0]], second.pictures[kept[:, 1]])])
    places = np.unique(np.concatenate(found), axis=0)
    return np.stack([first.rows[places[:, 0]], second.rows[places[:, 1]]], 1)


def _candidates(first: np.ndarray, second: np.ndarray) -> Iterator[Pairs]:
    """Places [P, 2] whose hashes agree in a band, a bounded number at a time."""
    for band in range(NUM_BANDS):
        shift = np.uint64(band * BAND_BITS)
        mask = np.uint64((1 << BAND_BITS) - 1)
        keys, others = (first >> shift) & mask, (second >> shift) & mask
        order = np.argsort(others, kind="stable")
        starts = np.searchsorted(others[order], keys, "left")
        counts = np.searchsorted(others[order], keys, "right") - starts
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(first):
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + MAX_PAIRS_PER_CHUNK, "right")))
            chunk = counts[begin:end]
            within = np.arange(chunk.sum()) - np.repeat(np.cumsum(chunk) - chunk, chunk)
            places = order[np.repeat(starts[begin:end], chunk) + within]
            yield np.stack([np.repeat(np.arange(begin, end), chunk), places], 1)
            begin = end


def _are_alike(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether small pictures [P, 256] are the same picture, but for a little noise."""
    one, other = pictures.astype(np.float32), others.astype(np.float32)
    close = np.abs(one - other).mean(1) <= MAX_DIFFERENCE
    one, other = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    correlation = (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return np.asarray(close & (correlation >= MIN_CORRELATION))
