"""Restoration: give the last layer, for known images seen through the recognised corruption, what the original gives it
for the same images untouched.

A label says one thing of an image, the original's features of its untouched view hundreds: learning towards them too
gained more at the same broken share (docs/choices.md). Relatives: stability training (Zheng et al., "Improving the
Robustness of Deep Neural Networks via Stability Training", CVPR 2016), here with the original in the place of the live
network, and feature distillation (Romero et al., "FitNets", ICLR 2015).

Legend: N training inputs, D features, B inputs of a batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.batches import Batch
from archrepair_core.calls import trace_calls
from archrepair_core.data.augment import IDENTITY
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.features import COMPUTED_AT_ONCE, Indices, Rows, StreamedRows, store_rows
from archrepair_core.modes import eval_mode
from archrepair_core.prefix_cache import ROLES, PrefixCache
from archrepair_core.spec import Repair

# Its weight in the loss where the spec leaves it open, and where little of the field works (docs/choices.md).
RESTORATION, BOLD_RESTORATION = 32.0, 4.0
# The role whose images are replayed through the corruption.
REPLAYED = "replay"
# Inputs that tell the scale of every feature; and the least it can be, as a share of the mean over all features.
MAX_SCALED, MIN_RELATIVE_VARIANCE = 512, 1e-2


@dataclass(frozen=True)
class Restoration:
    """What the original gives `layer` for the untouched images of one role, and the variance of each feature.

    `row_of_N` tells by place among the training inputs which of those images it is, −1 for inputs of other roles.
    """

    layer: str
    wanted: Rows
    variance_D: Tensor
    row_of_N: Indices
    weight: float

    @contextmanager
    def penalty(self, model: nn.Module) -> Iterator[Callable[[Batch], Tensor]]:
        """While open, the callable gives what a batch adds to the loss, asked after its forward pass through `model`:
        the squared distance from the wanted features in units of their variance, averaged over the batch, where inputs
        of other roles count 0.
        """
        with _entering(model, self.layer) as seen:
            yield lambda batch: self.weight * self._distance(seen[-1], batch)

    def _distance(self, features_BD: Tensor, batch: Batch) -> Tensor:
        known_B = np.flatnonzero(self.row_of_N[batch.items] >= 0)
        if not len(known_B):
            return features_BD.new_zeros(())
        rows = self.row_of_N[batch.items[known_B]]
        wanted_BD = self.wanted.read(np.zeros_like(rows), rows).to(features_BD)
        distance_BD = (features_BD[torch.from_numpy(known_B).to(features_BD.device)] - wanted_BD).square()
        return (distance_BD / self.variance_D.to(features_BD)).mean(1).sum() / len(features_BD)


def restoration_weight(asked: Repair, *, bold: bool) -> float:
    """Where the spec leaves it open, too."""
    if asked.restoration != "auto":
        return asked.restoration
    return BOLD_RESTORATION if bold else RESTORATION


def measure_restoration(cache: PrefixCache, *, weight: float) -> Restoration | None:
    """Run the original, `cache.model`, over the untouched replay images; None where it has no last layer to look at.

    What does not fit into the cache's budget is computed each time it is asked for.
    """
    replay, device = cache.splits[REPLAYED], cache.device
    some = to_tensor(replay.images[: min(len(replay), MAX_SCALED)], cache.preprocessing).to(device)
    layer = last_layer(cache.model, some[:2])
    if layer is None:
        return None

    def features_of(inputs: Tensor) -> Tensor:
        with torch.no_grad(), eval_mode(cache.model), _entering(cache.model, layer) as seen:
            cache.model(inputs)
        return seen[-1]

    variance_D = torch.cat([features_of(part) for part in some.split(COMPUTED_AT_ONCE)]).var(0, unbiased=False)
    taught = [(name, cache.splits[name]) for name in ROLES["training"] if name in cache.splits]
    rows = [np.arange(len(s)) if name == REPLAYED else np.full(len(s), -1) for name, s in taught if s.labelled]
    streamed = StreamedRows(replay, cache.preprocessing, (IDENTITY,), features_of, device)
    return Restoration(
        layer,
        _stored(streamed, cache),
        variance_D.clamp_min(MIN_RELATIVE_VARIANCE * float(variance_D.mean()) + 1e-12),
        np.concatenate(rows),
        weight,
    )


def last_layer(model: nn.Module, inputs: Tensor) -> str | None:
    """The last layer with a weight matrix or kernel, where it is called once and with one tensor."""
    weighted = {name: call for name, call in trace_calls(model, inputs).items() if name and call.weighted}
    if not weighted:
        return None
    name = max(weighted, key=lambda each: weighted[each].order)
    return name if weighted[name].count == 1 and weighted[name].input_shape is not None else None


def pooled(values: Tensor) -> Tensor:
    """[B, D]: maps averaged over their positions, tokens over their places."""
    if values.ndim > 3:
        return values.flatten(2).mean(2)
    return values.mean(1) if values.ndim == 3 else values


@contextmanager
def _entering(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """While open, the list holds what the last forward gave `layer`, pooled, with its gradients."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [pooled(args[0]).float()]  # of a bfloat16 pass too

    handle = model.get_submodule(layer).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _stored(rows: StreamedRows, cache: PrefixCache) -> Rows:
    sample = rows.read(np.zeros(1, np.intp), np.zeros(1, np.intp))
    if sample[0].nbytes * len(rows) > cache.budget.free:
        return rows
    return store_rows(rows, sample, cache.work_dir, cache.budget)
