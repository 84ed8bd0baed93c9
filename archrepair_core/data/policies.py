"""Augmentation policies that are not about any one fault: TrivialAugment and AugMix, as changes of pixels.

Müller & Hutter, "TrivialAugment", ICCV 2021; Hendrycks et al., "AugMix", ICLR 2020; both as torchvision has them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from archrepair_core.data.augment import IDENTITY, View
from archrepair_core.errors import DatasetError

POLICIES: dict[str, Callable[[], nn.Module]] = {"trivial": v2.TrivialAugmentWide, "augmix": v2.AugMix}
# Every view is kept as features, so that a policy is sampled this often per image and not once per step.
SAMPLES = 4


@dataclass(frozen=True)
class Policy:
    """A PixelChange: one draw of the policy per seed. `full_scale` is the value of white, as for a Corruption."""

    name: str
    full_scale: float = 255.0

    def __call__(self, images_NHWC: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Changed copies, same shape and dtype; floats are taken through bytes, which the policies are defined on."""
        if images_NHWC.shape[3] not in (1, 3):
            raise DatasetError(
                "channels_not_augmentable",
                f"{self.name} is defined for images of 1 or 3 channels, these have {images_NHWC.shape[3]}",
                hint="set repair.augment to flip, crop, flip_crop or none",
            )
        pixels_NCHW = torch.from_numpy(self._as_bytes(images_NHWC)).permute(0, 3, 1, 2)
        policy = POLICIES[self.name]()
        changed = np.stack([_seeded(policy, image, seed) for image, seed in zip(pixels_NCHW, seeds, strict=True)])
        if images_NHWC.dtype == np.uint8:
            return changed
        return (changed * (self.full_scale / 255)).astype(images_NHWC.dtype)

    def _as_bytes(self, images: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8:
            return images
        return np.rint(np.clip(images / self.full_scale, 0, 1) * 255).astype(np.uint8)


def _seeded(policy: nn.Module, image_CHW: torch.Tensor, seed: int) -> np.ndarray:
    """One draw [H, W, C]; training's own random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return policy(image_CHW).permute(1, 2, 0).numpy()


def policy_views(name: str, *, full_scale: float) -> tuple[View, ...]:
    """The image as it is and `SAMPLES` draws of the policy."""
    return (IDENTITY, *(View(change=Policy(name, full_scale), seed=i) for i in range(1, SAMPLES + 1)))
