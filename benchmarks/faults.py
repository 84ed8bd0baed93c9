"""Planted faults as data: a kind, a block and a seed say exactly which weights of a copy are damaged, and how.

Only weights with at least two axes are touched (filters, matrices); batch-norm statistics and biases stay what they
were, as after a bad merge, a wrong cast or a flipped transfer of the weights alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

# Standard deviation of the noise, in standard deviations of the weight it is added to.
NOISE = (0.5, 1.5)
# Share of the filters (rows of the weight) that are zeroed or swapped.
SHARE = (0.2, 0.6)


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
    """`count` faults over `blocks`, every kind equally often, the places drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    kinds = list(KINDS)
    places = torch.randint(len(blocks), (count,), generator=generator).tolist()
    return [Fault(kinds[i % len(kinds)], blocks[place], seed * 10_000 + i) for i, place in enumerate(places)]


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


def _some_filters(weight: Tensor, strength: float, generator: Generator) -> Tensor:
    share = SHARE[0] + strength * (SHARE[1] - SHARE[0])
    return torch.randperm(len(weight), generator=generator)[: max(2, round(share * len(weight)))]


KINDS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "noise": _add_noise,
    "zeroed": _zero_filters,
    "swapped": _swap_filters,
}
