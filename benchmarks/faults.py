"""Planted faults as data: a kind, a block and a seed say exactly which weights of a copy are damaged, and how.

Only weights with at least two axes are touched (filters, matrices); batch-norm statistics and biases stay what they
were, as after a bad merge, a wrong cast or a flipped transfer of the weights alone. A `Confusion` damages labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn

# Standard deviation of the noise, in standard deviations of the weight it is added to.
NOISE = (0.5, 1.5)
# Share of the filters (rows of the weight) that are zeroed or swapped.
SHARE = (0.2, 0.6)
# Share of the weights that have one of their 32 bits flipped, and what no flipped weight may exceed: the highest bit
# of the exponent makes any weight about 1e38, which no network survives and every check for overflow finds.
FLIPPED, LARGEST_FLIPPED = (0.2, 0.6), 1e3
# A quantised weight keeps so many steps to each side of zero (2 or 3 bits), which reach so many standard deviations.
STEPS, CLIP = (1, 3), (0.5, 1.5)


@dataclass(frozen=True)
class Fault:
    """One planted fault: `kind` is a key of KINDS, `block` a module name; `seed` draws strength and place."""

    kind: str
    block: str
    seed: int


def damage_(model: nn.Module, block_name: str, kind: str, seed: int) -> nn.Module:
    """Damage every filter and matrix of one block in place; the same arguments damage the same numbers.

    Raises ValueError for a block without such weights.
    """
    weights = [weight for weight in model.get_submodule(block_name).parameters() if weight.dim() >= 2]
    if not weights:
        raise ValueError(f"block {block_name!r} has no weight with two or more axes to damage")
    generator = torch.Generator().manual_seed(seed)
    strength = float(torch.rand((), generator=generator))
    with torch.no_grad():
        for weight in weights:
            weight.copy_(KINDS[kind](weight.detach().cpu(), strength, generator))
    return model


def draw_faults(blocks: list[str], count: int, *, seed: int = 0) -> list[Fault]:
    """`count` faults over `blocks`, every kind of DRAWN equally often, the places drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(blocks), (count,), generator=generator).tolist()
    return [Fault(DRAWN[i % len(DRAWN)], blocks[place], seed * 10_000 + i) for i, place in enumerate(places)]


@dataclass(frozen=True)
class Confusion:
    """A `share` of the labels of one class say another."""

    label: int
    taken_for: int
    share: float


def confuse(labels_N: npt.NDArray[np.int64], confusion: Confusion) -> npt.NDArray[np.int64]:
    """The labels of someone who confuses two classes; the same labels are wrong every time."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(labels_N == confusion.label))
    told = labels_N.copy()
    told[rows[: round(confusion.share * len(rows))]] = confusion.taken_for
    return told


def _add_noise(weight: Tensor, strength: float, generator: Generator) -> Tensor:
    scale = NOISE[0] + strength * (NOISE[1] - NOISE[0])
    return weight + scale * weight.std() * torch.randn(weight.shape, generator=generator)


def _zero_filters(weight: Tensor, strength: float, generator: Generator) -> Tensor:
    damaged = weight.clone()
    damaged[_some_filters(weight, strength, generator)] = 0.0
    return damaged


def _swap_filters(weight: Tensor, strength: float, generator: Generator) -> Tensor:
    """The chosen filters change places in a circle."""
    damaged, chosen = weight.clone(), _some_filters(weight, strength, generator)
    damaged[chosen] = weight[chosen.roll(1)]
    return damaged


def _flip_bits(weight: Tensor, strength: float, generator: Generator) -> Tensor:
    """One bit each, of the chosen weights, wherever what comes out is a number of a size that could be a weight."""
    share = FLIPPED[0] + strength * (FLIPPED[1] - FLIPPED[0])
    places = torch.randint(32, weight.shape, generator=generator)
    # Shifted as int64, cut back to 32 bits: bit 31 is the sign.
    mask = (torch.ones_like(places) << places).to(torch.int32)
    flipped = (weight.contiguous().view(torch.int32) ^ mask).view(torch.float32)
    chosen = torch.rand(weight.shape, generator=generator) < share
    return torch.where(chosen & (flipped.abs() <= LARGEST_FLIPPED), flipped, weight)


def _quantise(weight: Tensor, strength: float, generator: Generator) -> Tensor:
    """One scale for the whole tensor, which cuts the tails off."""
    limit = (CLIP[0] + strength * (CLIP[1] - CLIP[0])) * weight.std()
    steps = STEPS[int(torch.randint(len(STEPS), (), generator=generator))]
    return (weight.clamp(-limit, limit) / limit * steps).round() / steps * limit


def _some_filters(weight: Tensor, strength: float, generator: Generator) -> Tensor:
    share = SHARE[0] + strength * (SHARE[1] - SHARE[0])
    return torch.randperm(len(weight), generator=generator)[: max(2, round(share * len(weight)))]


KINDS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "noise": _add_noise,
    "zeroed": _zero_filters,
    "swapped": _swap_filters,
    "bit_flips": _flip_bits,
    "quantised": _quantise,
}
# What `draw_faults` draws from: the localization results are stated for these.
DRAWN = ("noise", "zeroed", "swapped")
