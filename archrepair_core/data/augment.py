"""Label-preserving views of an image batch: a finite set, so that prefix activations can be cached per view."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from archrepair_core.data.images import ImageRows
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.spec import Preprocessing
from archrepair_core.statistics import paired_difference_interval

# A few points are lost on any view the model was not trained on; a changed meaning costs tens.
TOLERATED_LOSS = 0.02
# Of a model that is right on a smaller share little can be lost, and so it says nothing about a move: training on
# mirrored views of turned pictures, which nothing spoke against, cost 4 to 16 points (docs/choices.md).
LITTLE = 0.5
# Mirrored photographs are at 0.02–0.13, from 30 to 512 of them; mirrored digits at 0.6–4.
NATURAL_DISTANCE = 0.25


class PixelChange(Protocol):
    """Something that happens to pixels before preprocessing, such as a corruption; a frozen dataclass."""

    def __call__(self, images_NHWC: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Changed copies, same shape and dtype; one seed per image, so that batching changes nothing."""
        ...


@dataclass(frozen=True)
class View:
    """One deterministic transformation: change the pixels, mirror left-right, then move by (dy, dx) sixteenths."""

    flip: bool = False
    dy: int = 0
    dx: int = 0
    change: PixelChange | None = None
    seed: int = 0


IDENTITY = View()
AUGMENTATIONS: dict[str, tuple[View, ...]] = {
    "none": (IDENTITY,),
    "flip": (IDENTITY, View(flip=True)),
    "crop": (IDENTITY, View(dy=1, dx=1), View(dy=-1, dx=1), View(dy=0, dx=-1)),
    "flip_crop": (IDENTITY, View(flip=True), View(dy=1, dx=-1), View(flip=True, dy=-1, dx=1)),
}


def viewed(images: ImageRows, rows: np.ndarray, preprocessing: Preprocessing, view: View) -> Tensor:
    """The images of `rows` as model input [N, C, H, W] under one view."""
    pixels_NHWC = images[rows]
    if view.change is not None:
        # Distinct per row and view, whatever the batches are.
        seeds = [hash((view.seed, row)) % 2**32 for row in rows.tolist()]
        pixels_NHWC = view.change(pixels_NHWC, seeds)
    return move(to_tensor(pixels_NHWC, preprocessing), view)


def move(images_NCHW: Tensor, view: View) -> Tensor:
    """The geometric part of a view; what a shift uncovers is filled by reflection."""
    if view.flip:
        images_NCHW = images_NCHW.flip(3)
    if not (view.dy or view.dx):
        return images_NCHW
    height, width = images_NCHW.shape[2:]
    dy, dx = (step * max(1, edge // 16) for step, edge in ((view.dy, height), (view.dx, width)))
    pad_y, pad_x = abs(dy), abs(dx)
    padded = F.pad(images_NCHW, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    return padded[:, :, pad_y + dy : pad_y + dy + height, pad_x + dx : pad_x + dx + width]


def harmless_augmentation(answers_of: Callable[[View], Tensor], labels: Tensor) -> str:
    """The richest augmentation under which the original model stays about as good on the repair set.

    A model that answers mirrored images much worse (digits, letters) was taught that mirroring changes the label. A
    view is refused when the 95 % interval of the paired change lies below −`TOLERATED_LOSS`; `answers_of(view)` gives
    predicted labels [N]. A model that is hardly ever right cannot answer worse and tells nothing: then there is none.
    """
    right = answers_of(IDENTITY) == labels
    if float(right.float().mean()) < LITTLE:
        return "none"

    def hurts(view: View) -> bool:
        right_viewed = answers_of(view) == labels
        lost, won = int((right & ~right_viewed).sum()), int((~right & right_viewed).sum())
        return paired_difference_interval(won, lost, len(labels))[1] < -TOLERATED_LOSS

    return _richest(lambda view: not hurts(view))


def natural_augmentation(distance_of: Callable[[View], float]) -> str:
    """The richest augmentation that the model can hardly tell from the inputs themselves: no labels needed.

    `distance_of(view)` is the divergence of viewed inputs from plain ones, in divergences of one half from the other.
    """
    return _richest(lambda view: distance_of(view) < NATURAL_DISTANCE)


def _richest(allows: Callable[[View], bool]) -> str:
    names = {(False, False): "none", (True, False): "flip", (False, True): "crop", (True, True): "flip_crop"}
    return names[allows(View(flip=True)), allows(AUGMENTATIONS["crop"][1])]
