"""Healthy statistics, and how far a model is from them: what `align` trains towards, and what chooses without labels.

Relatives: the batch-norm loss of DeepInversion (Yin et al., CVPR 2020), bottom-up feature restoration (Eastwood et al.,
ICLR 2022).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import SpecError
from archrepair_core.fingerprint import (
    Fingerprint,
    divergence,
    fingerprinted_layers,
    measure_fingerprint,
    recorded_fingerprint,
    statistics_of,
    watch_channels,
)
from archrepair_core.prefix_cache import PrefixCache

BATCH_SIZE = 128
# Statistics of so many inputs are as good as those of all.
MAX_INPUTS = 512


def healthy_fingerprint(cache: PrefixCache, reference: nn.Module | None) -> Fingerprint:
    """What every layer's statistics should be: the batch-norm record; else those of `reference`, an earlier good
    version, on the repair inputs; else, for shifted inputs, the model's own on inputs that work today.

    Raises SpecError when there is none of the three.
    """
    recorded = recorded_fingerprint(cache.model)
    if recorded:
        return recorded
    layers = fingerprinted_layers(cache.model)
    if reference is not None:
        return measure_fingerprint(reference, _batches(cache, "repair"), layers)
    if "guard" in cache.splits:
        return measure_fingerprint(cache.model, _batches(cache, "guard"), layers)
    raise SpecError(
        "nothing_to_align_to",
        "the model has no batch-norm, so it keeps no record of healthy statistics to align to",
        hint="give an earlier good version of it as model.reference, or, if its inputs have changed, a regression set; "
        "with labels, repair.method auto needs neither",
    )


def tells_healthy(cache: PrefixCache, reference: nn.Module | None) -> bool:
    """Whether `healthy_fingerprint` knows an answer."""
    return bool(recorded_fingerprint(cache.model)) or reference is not None or "guard" in cache.splits


@contextmanager
def watched_divergence(model: nn.Module, healthy: Fingerprint) -> Iterator[Callable[[], Tensor]]:
    """While open, the callable gives the divergence of the last forward from `healthy`, live in the autograd graph.

    It is the mean over the layers that ran: a forward that starts at a cut is asked only about what lies behind it.
    """
    present = [name for name, _ in model.named_modules() if name in healthy]
    with watch_channels(model, present) as seen:
        yield lambda: _mean_divergence(seen, healthy)


def held_out_divergence(model: nn.Module, cache: PrefixCache, healthy: Fingerprint) -> float:
    """How far the model's statistics on the validation inputs, without their labels, are from the healthy ones."""
    present = [name for name, _ in model.named_modules() if name in healthy]
    found = measure_fingerprint(model, _batches(cache, "validation"), present)
    return float(np.mean([float(divergence(found[name], healthy[name])) for name in found]))


def _mean_divergence(seen: Mapping[str, Tensor], healthy: Fingerprint) -> Tensor:
    return torch.stack([divergence(statistics_of(values), healthy[name]) for name, values in seen.items()]).mean()


def _batches(cache: PrefixCache, role: str) -> Iterator[Tensor]:
    images = cache.splits[role].images
    for start in range(0, min(len(images), MAX_INPUTS), BATCH_SIZE):
        yield to_tensor(images[start : start + BATCH_SIZE], cache.preprocessing)
