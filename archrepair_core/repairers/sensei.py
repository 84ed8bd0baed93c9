"""`sensei`: train on the worst variant of every image that a genetic search over its transformations has found.

Gao, Saha, Prasad & Roychoudhury, "Fuzz Testing based Data Augmentation to Improve Robustness of Deep Neural Networks",
ICSE 2020 (SENSEI-SA), read with the authors' code, gaoxiang9430/sensei. Every training image keeps a small population
of transformations: rotation to 30°, shift, shear and zoom to a tenth, contrast to a fifth, brightness to an eighth of
white. Each time it is trained on, children are made by mutation (60 %) or by crossover with the member most unlike
the best; the fitness is the loss under the network as it is; the fittest stay, and the first of them is trained on. An
image whose worst variant has a loss below 0.001 counts as robust, and is not searched further (SA).

Deviations and choices:
- Three members and three children for seven and eight, because each of them is run before each step.
- A mutation changes half of the parameters by a fifth of their range; blur, which their code leaves at 0, is left out.
- An image that is robust once stays so: it is not looked at again, and trained on in the worst variant found till then.
- Training data is repair and replay; mirrored or moved views are not added to the transformations.
- Training is the service's (training.py): distilled, averaged, walked back.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import normalize, to_pixels
from archrepair_core.features import Features, Indices, rounded
from archrepair_core.match import known_scale_of
from archrepair_core.modes import eval_mode
from archrepair_core.prefix_cache import ROLES
from archrepair_core.scope import NETWORK
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.lesson import Tail
from archrepair_core.search.search import run_alone
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.spec import Preprocessing
from archrepair_core.training import TrainingPlan

# Rotation in degrees, shifts in shares of the edge, shear, zoom, contrast, brightness in shares of white.
RANGES = np.array([[-30, 30], [-0.1, 0.1], [-0.1, 0.1], [-0.1, 0.1], [0.9, 1.1], [0.8, 1.2], [-0.125, 0.125]])
IDENTITY = np.array([0.0, 0, 0, 0, 1, 1, 0])
NUM_MEMBERS, NUM_CHILDREN = 3, 3
MUTATION_RATE, MUTATED_SHARE, STEP_SHARE = 0.6, 0.5, 0.2
ROBUST_LOSS = 1e-3

Floats = npt.NDArray[np.float64]


def train_on_worst(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the network, trained on what it does worst on."""

    @contextmanager
    def lesson(
        model: nn.Module, _tail: Tail, features: Features, plan: TrainingPlan
    ) -> Iterator[tuple[Features, TrainingPlan]]:
        cache = arena.starts["original"]
        parts = {
            role: WorstRows(cache.splits[role], model, cache.preprocessing, cache.device, seed=arena.seed)
            for role in ROLES["training"]
            if role in cache.splits
        }
        carried = {f"{role}.{name}": value for role, part in parts.items() for name, value in part.state.items()}
        yield replace(features, parts=tuple(parts.values())), replace(plan, carried=carried)

    # Stored views would only cost the time it takes to make them.
    arena = replace(arena, starts={"original": arena.starts["original"].seen_under({})})
    return run_alone(arena, Genotype(NETWORK), lesson, deadline=deadline, epochs=epochs)


@dataclass(eq=False)
class WorstRows:
    """Rows that search on each time they are read: what comes out is the worst variant of every image so far.

    Shapes: B images asked for at once, V variants of each, 7 parameters.
    """

    images: LabelledImages
    model: nn.Module
    preprocessing: Preprocessing
    device: torch.device
    seed: int
    members: Floats = field(init=False)
    losses: Floats = field(init=False)
    num_generations: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.num_generations = np.zeros(1, np.int64)
        shape = (len(self.images), NUM_MEMBERS, len(RANGES))
        self.members = self._chance().uniform(RANGES[:, 0], RANGES[:, 1], shape)
        self.members[:, 0] = IDENTITY
        self.losses = np.full(shape[:2], math.inf)

    @property
    def state(self) -> dict[str, Tensor]:
        """What each read changes, sharing its memory: who writes here puts the search back to where that was."""
        arrays = {"members": self.members, "losses": self.losses, "num_generations": self.num_generations}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _chance(self) -> np.random.Generator:
        """Of the generation that is next, whichever process makes it."""
        return np.random.default_rng([self.seed, len(self.images), int(self.num_generations[0])])

    @property
    def num_views(self) -> int:
        """One: the worst."""
        return 1

    def __len__(self) -> int:
        return len(self.images)

    def read(self, views: Indices, items: Indices) -> Tensor:
        """As `Rows.read`; the populations of the items are one generation older afterwards."""
        searched = np.unique(items[self.losses[items, 0] >= ROBUST_LOSS])
        if len(searched):
            self._next_generation(searched)
        return rounded(self._variants(items, self.members[items, :1])[:, 0])

    def _next_generation(self, items: Indices) -> None:
        children_BV7 = self._children(self.members[items], self._chance())
        variants_BV7 = np.concatenate([self.members[items], children_BV7], axis=1)
        self.num_generations += 1
        loss_BV = self._loss(items, variants_BV7)
        best_BV = np.argsort(-loss_BV, axis=1, kind="stable")[:, :NUM_MEMBERS]
        self.members[items] = np.take_along_axis(variants_BV7, best_BV[:, :, None], axis=1)
        self.losses[items] = np.take_along_axis(loss_BV, best_BV, axis=1)

    def _children(self, members_BM7: Floats, rng: np.random.Generator) -> Floats:
        """Of the fittest, which stands first: mutated, or crossed with the member most unlike it."""
        shape = (len(members_BM7), NUM_CHILDREN, len(RANGES))
        first_B17 = members_BM7[:, :1]
        width = RANGES[:, 1] - RANGES[:, 0]
        steps = rng.choice([-1.0, 1.0], shape) * STEP_SHARE * width * (rng.random(shape) < MUTATED_SHARE)
        mutated = np.clip(first_B17 + steps, RANGES[:, 0], RANGES[:, 1])
        unlike_B = (np.abs(members_BM7 - first_B17) / width).sum(2).argmax(1)
        other_B17 = members_BM7[np.arange(len(members_BM7)), unlike_B][:, None]
        crossed = np.where(rng.random(shape) < 0.5, first_B17, other_B17)
        is_mutated = rng.random((len(members_BM7), 1, 1)) < MUTATION_RATE
        return np.where(is_mutated, mutated, crossed)

    def _loss(self, items: Indices, variants_BV7: Floats) -> Floats:
        """Of every variant, under the network as it is."""
        labels = torch.from_numpy(np.repeat(self.images.labels[items], variants_BV7.shape[1])).to(self.device)
        with torch.no_grad(), eval_mode(self.model):
            inputs = self._variants(items, variants_BV7).flatten(0, 1).to(self.device)
            loss = F.cross_entropy(self.model(inputs).float(), labels, reduction="none")
        return loss.double().nan_to_num(0.0).cpu().numpy().reshape(variants_BV7.shape[:2])

    def _variants(self, items: Indices, variants_BV7: Floats) -> Tensor:
        """Model inputs [B, V, C, H, W]."""
        pixels = to_pixels(self.images.images[items], self.preprocessing)
        num_variants = variants_BV7.shape[1]
        repeated = pixels.repeat_interleave(num_variants, dim=0)
        white = white_of(self.images, self.preprocessing)
        changed = transform(repeated, torch.from_numpy(variants_BV7).float().flatten(0, 1), white=white)
        return normalize(changed, self.preprocessing).unflatten(0, (len(items), num_variants))


def white_of(images: LabelledImages, preprocessing: Preprocessing) -> float:
    """The value of white once pixels are scaled."""
    if images.images.dtype == np.uint8:
        return 255.0 if preprocessing.scale == "0-255" else 1.0
    return known_scale_of(images.images, preprocessing)


def transform(pixels_BCHW: Tensor, parameters_B7: Tensor, *, white: float) -> Tensor:
    """Each image under its own parameters (see `RANGES`); what a move uncovers is filled by reflection."""
    angle, dx, dy, shear, zoom, contrast, brightness = parameters_B7.T
    angle = torch.deg2rad(angle)
    height, width = pixels_BCHW.shape[2:]
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Rows map places of the result to places of the image; both run from −1 to 1 along their edge.
    aspect = height / width
    theta = torch.stack(
        [cos, (shear * cos - sin) * aspect, -2 * dx, sin / aspect, shear * sin + cos, -2 * dy], dim=1
    ).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(pixels_BCHW.shape), align_corners=False)
    moved = F.grid_sample(pixels_BCHW, grid, padding_mode="reflection", align_corners=False)
    changed = moved * contrast.view(-1, 1, 1, 1) + white * brightness.view(-1, 1, 1, 1)
    return changed.clamp(0.0, white)
