"""Batches of features: which inputs under which view, the same every time and in however many processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from archrepair_core.features import Features, Indices
from archrepair_core.processes import share_of


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch; its mean loss counts for `weight` of the whole batch's.

    `items` are their places among the training inputs.
    """

    inputs: Tensor
    labels_N: Tensor
    original_NK: Tensor
    weight: float
    items: Indices


def draws(features: Features, *, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """(views, items) of whole batches: shuffled passes, each input under a view drawn anew.

    Batch-norm cannot train on a batch of one, so none has one.
    """
    rng = np.random.default_rng(seed)
    num_items = len(features)
    for _ in range(epochs):
        order = rng.permutation(num_items)
        for start in range(0, num_items, batch_size):
            items = order[start : start + batch_size]
            if len(items) == 1 and num_items > 1:
                items = np.concatenate([items, order[:1]])
            yield rng.integers(features.num_views_N[items]), items


def read_batch(features: Features, views: Indices, items: Indices, device: torch.device) -> Batch:
    """This process's share, on `device`."""
    mine, weight = share_of(items)
    items = items[mine]
    return Batch(
        features.batch(views[mine], items, device),
        features.labels_N[items].to(device),
        features.original_NK[items].to(device),
        weight,
        items,
    )
