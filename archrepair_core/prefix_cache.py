"""The activations that enter a cut, computed once per augmented view and kept in a memory-mapped fp16 file.

Everything below the cut is frozen while a block is repaired, so training and choosing need only what enters it.
Shapes: V views, N inputs, K classes.
"""

import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from archrepair_core.cut import NoCut, cut_at
from archrepair_core.data.augment import IDENTITY, View, stack_views
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import EngineError
from archrepair_core.modes import eval_mode
from archrepair_core.spec import Preprocessing

# What a name of features stands for, where it is not the name of one split.
ROLES = {"training": ("repair", "replay")}
INPUT = ""  # the cut before everything: features are the preprocessed images themselves
FP16_MAX = 65504.0


@dataclass(frozen=True)
class Features:
    """What enters a cut: `inputs_VN` fp16 [V, N, ...] on disk; labels and the original's logits on the plain images."""

    inputs_VN: npt.NDArray[np.float16]
    original_NK: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def batch(self, views: npt.NDArray[np.intp], items: npt.NDArray[np.intp], device: torch.device) -> Tensor:
        """Inputs of the cut for pairs (view, item), float32 on `device`."""
        return torch.from_numpy(self.inputs_VN[views, items]).to(device, torch.float32)


@dataclass
class PrefixCache:
    """Features by (cut, split), each computed at most once; files live in `work_dir` and die with it.

    `model` is where every repair starts from and must not be modified: features of other weights would be wrong
    without a sign, so each use compares a checksum (EngineError `stale_features`). `original_logits` [N, K] are the
    customer's model's, from the baseline; `views` by role, a role without any is only seen as it is.
    """

    model: nn.Module
    splits: Mapping[str, LabelledImages]
    original_logits: Mapping[str, Tensor]
    preprocessing: Preprocessing
    views: Mapping[str, tuple[View, ...]]
    work_dir: Path
    device: torch.device
    batch_size: int = 128
    max_bytes: int = 8 * 1024**3
    _features: dict[tuple[str, str], Features] = field(default_factory=dict)
    _checksum: int | None = None

    def features(self, cut_name: str, split: str) -> Features:
        """Features of a split, or of `training` (repair and replay), at `cut_name` (`INPUT` for the whole network)."""
        key = (cut_name, split)
        if cut_name != INPUT:
            self._check_model(cut_name)
        if key not in self._features:
            self._features[key] = self._compute(cut_name, split)
        return self._features[key]

    def starting_from(self, model: nn.Module) -> "PrefixCache":
        """The same cache for another starting point; what does not depend on the model is shared."""
        shared = {key: value for key, value in self._features.items() if key[0] == INPUT}
        return replace(self, model=model, _features=shared, _checksum=None)

    def _check_model(self, cut_name: str) -> None:
        checksum = _checksum_of(self.model)
        if self._checksum is None:
            self._checksum = checksum
        elif checksum != self._checksum:
            raise EngineError(
                "stale_features", f"the model changed after features were computed for cuts such as {cut_name!r}"
            )

    def _compute(self, cut_name: str, split: str) -> Features:
        data = [self.splits[role] for role in ROLES.get(split, (split,)) if role in self.splits]
        with torch.inference_mode(), eval_mode(self.model):
            inputs_VN = self._entering(cut_name, split, data)
        labels_N = torch.from_numpy(np.concatenate([images.labels for images in data]))
        original_NK = torch.cat([self.original_logits[images.name] for images in data])
        return Features(inputs_VN, original_NK, labels_N)

    def _entering(self, cut_name: str, split: str, data: list[LabelledImages]) -> npt.NDArray[np.float16]:
        """Run the prefix over every view of every input, straight into a file."""
        prefix = self._prefix(cut_name, data[0])
        num_views = max(len(self._views_of(images)) for images in data)
        stored: npt.NDArray[np.float16] | None = None
        start = 0
        for images_VNCHW in self._viewed_batches(data, num_views):
            flat = prefix(images_VNCHW.flatten(0, 1)).clamp(-FP16_MAX, FP16_MAX).half().cpu().numpy()
            entered = flat.reshape(num_views, -1, *flat.shape[1:])
            if stored is None:
                stored = self._allocate(cut_name, split, (num_views, sum(map(len, data)), *entered.shape[2:]))
            stored[:, start : start + entered.shape[1]] = entered
            start += entered.shape[1]
        assert stored is not None, f"split {split!r} is empty; reading the data refuses that"
        return stored

    def _prefix(self, cut_name: str, data: LabelledImages) -> Callable[[Tensor], Tensor]:
        if cut_name == INPUT:
            return lambda images: images
        sample = to_tensor(data.images[:2], self.preprocessing).to(self.device)
        cut = cut_at(self.model, cut_name, sample)
        if isinstance(cut, NoCut):
            raise EngineError("no_cut", f"{cut_name!r} was offered as a cut, but: {cut.reason}")
        return cut.prefix

    def _views_of(self, images: LabelledImages) -> tuple[View, ...]:
        return self.views.get(images.name, (IDENTITY,))

    def _viewed_batches(self, data: list[LabelledImages], num_views: int) -> Iterator[Tensor]:
        """Every part under equally many views; a part that has fewer repeats them."""
        step = max(1, self.batch_size // num_views)
        for images in data:
            views = list(islice(cycle(self._views_of(images)), num_views))
            for start in range(0, len(images), step):
                rows = slice(start, min(start + step, len(images)))
                yield stack_views(images.images, rows, self.preprocessing, views).to(self.device)

    def _allocate(self, cut_name: str, split: str, shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
        num_bytes = 2 * math.prod(shape)
        if num_bytes > self.max_bytes:
            raise EngineError(
                "prefix_cache_full",
                f"caching {split!r} at {cut_name or 'the input'!r} needs {num_bytes / 1e9:.1f} GB, "
                f"the limit is {self.max_bytes / 1e9:.1f} GB",
                hint="send fewer repair inputs, or set repair.augment to 'none'",
            )
        descriptor, path = tempfile.mkstemp(prefix="features-", suffix=".npy", dir=self.work_dir)
        os.close(descriptor)
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _checksum_of(model: nn.Module) -> int:
    """Over names and bytes of every tensor; it need only tell an accident, so a fast one will do."""
    checksum = 0
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(name.encode(), checksum)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(data, checksum)
    return checksum
