"""The activations that enter a cut, computed at most once per augmented view and kept on disk as fp16, within a budget.

Everything below the cut is frozen while a block is repaired, so training and choosing need only what enters it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.cut import NoCut, cut_at
from archrepair_core.data.augment import IDENTITY, View
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import EngineError
from archrepair_core.features import DiskBudget, Features, Rows, StoredRows, StreamedRows, rounded, store_rows
from archrepair_core.modes import eval_mode
from archrepair_core.spec import Preprocessing

# What a name of features stands for, where it is not the name of one split.
ROLES = {"training": ("repair", "replay")}
# What one trial reads at its cut, again and again; it is kept together or not at all.
TRIAL_ROLES = (*ROLES["training"], "validation", "guard")
INPUT = ""  # the cut before everything: features are the preprocessed images themselves

# Checksum of the weights that computed the rows (0 for those of the input), cut, role.
_Key = tuple[int, str, str]


@dataclass
class PrefixCache:
    """Features by (cut, split). What fits into the budget lies in `work_dir`, the rest is computed when asked for.

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
    budget: DiskBudget = field(default_factory=DiskBudget)
    _rows: dict[_Key, StoredRows] = field(default_factory=dict)
    _checksum: int | None = None

    def features(self, cut_name: str, split: str) -> Features:
        """Features of a split, or of `training` (repair and replay), at `cut_name` (`INPUT` for the whole network)."""
        if cut_name != INPUT:
            self._check_model(cut_name)
        data = [self.splits[role] for role in ROLES.get(split, (split,)) if role in self.splits]
        if split in ROLES:  # a part without labels has nothing to teach
            data = [images for images in data if images.labelled]
        parts = tuple(self._rows_of(cut_name, images) for images in data)
        labels_N = torch.from_numpy(np.concatenate([images.labels for images in data]))
        return Features(parts, torch.cat([self.original_logits[images.name] for images in data]), labels_N)

    def starting_from(self, model: nn.Module) -> "PrefixCache":
        """The same cache for another starting point: one budget, and what does not depend on the model is shared."""
        return replace(self, model=model, _checksum=None)

    def seen_under(self, views: Mapping[str, tuple[View, ...]]) -> "PrefixCache":
        """The same cache for other views of the roles; what is stored of these ones is not asked."""
        return replace(self, views=views, _rows={})

    def _check_model(self, cut_name: str) -> None:
        checksum = _checksum_of(self.model)
        if self._checksum is None:
            self._checksum = checksum
        elif checksum != self._checksum:
            raise EngineError(
                "stale_features", f"the model changed after features were computed for cuts such as {cut_name!r}"
            )

    def _rows_of(self, cut_name: str, images: LabelledImages) -> Rows:
        key = (0 if cut_name == INPUT else self._checksum or 0, cut_name, images.name)
        if key in self._rows:
            self._rows[key] = self._rows.pop(key)  # the most recently used stand last
            return self._rows[key]
        prefix = self._prefix(cut_name, images)
        sample = rounded(prefix(self._sample(images)))
        views, row_bytes = self._views_of(images.name), sample[0].nbytes
        num_views = self._affordable_views(images.name, row_bytes=row_bytes)
        computed = StreamedRows(images, self.preprocessing, views, prefix, self.device)
        if not num_views or not self._make_room(row_bytes * num_views * len(images), cut_name):
            return computed
        kept = replace(computed, views=views[:num_views])
        self._rows[key] = store_rows(kept, sample, self.work_dir, self.budget)
        return self._rows[key]

    def _views_of(self, role: str) -> tuple[View, ...]:
        return self.views.get(role, (IDENTITY,))

    def _affordable_views(self, role: str, *, row_bytes: int) -> int:
        """How many views of `role` may be stored, with all that a trial needs at the same cut; 0 is none.

        It does not depend on what is stored already, so that a job that is resumed sees the same views.
        """
        together = {name for name in (TRIAL_ROLES if role in TRIAL_ROLES else (role,)) if name in self.splits}
        for most in range(max(len(self._views_of(name)) for name in together), 0, -1):
            counts = (min(most, len(self._views_of(name))) * len(self.splits[name]) for name in together)
            if row_bytes * sum(counts) <= self.budget.max_bytes:
                return min(most, len(self._views_of(role)))
        # Validation is read most often for its size: at every α.
        alone = role == "validation" and row_bytes * len(self.splits[role]) <= self.budget.max_bytes
        return 1 if alone else 0

    def _make_room(self, num_bytes: int, cut_name: str) -> bool:
        """Forget rows of other cuts, those unused for longest first, until so many bytes are free."""
        for key in [key for key in self._rows if key[1] != cut_name]:
            if self.budget.free >= num_bytes:
                break
            del self._rows[key]
        return self.budget.free >= num_bytes

    def _sample(self, images: LabelledImages) -> Tensor:
        return to_tensor(images.images[:2], self.preprocessing).to(self.device)

    def _prefix(self, cut_name: str, images: LabelledImages) -> Callable[[Tensor], Tensor]:
        """From preprocessed images to what enters the cut, with nothing in train mode and no graph."""
        if cut_name == INPUT:
            return lambda inputs: inputs
        model, cut = self.model, cut_at(self.model, cut_name, self._sample(images))
        if isinstance(cut, NoCut):
            raise EngineError("no_cut", f"{cut_name!r} was offered as a cut, but: {cut.reason}")

        def prefix(inputs: Tensor) -> Tensor:
            with torch.no_grad(), eval_mode(model):
                return cut.prefix(inputs)

        return prefix


def _checksum_of(model: nn.Module) -> int:
    """Over names and bytes of every tensor; it need only tell an accident, so a fast one will do."""
    checksum = 0
    for name, tensor in model.state_dict().items():
        checksum = crc32(name.encode(), checksum)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        checksum = crc32(data, checksum)
    return checksum
