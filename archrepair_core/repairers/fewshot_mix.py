"""`fewshot_mix`: train on known images mixed with failing ones, and let the answers to all mixtures agree.

Ren et al., "Few-Shot Guided Mix for DNN Repairing", ICSME 2020. Its text was not readable to us, and its authors
published no code: this is a reading of its title, of what is said of it elsewhere, and of AugMix (Hendrycks et al.,
ICLR 2020, section 3). A few failing images guide the mixture: of the chains that AugMix adds up with weights from a
Dirichlet distribution, one is a failing image; the sum is mixed with the known image by a share from a Beta
distribution. The loss is cross-entropy and AugMix's consistency: the Jensen-Shannon divergence among the answers to the
known image and two mixtures of it, times 12.

Choices, since hardly anything is known:
- Two chains of one to three random operations (torchvision's RandAugment; drawn for a batch, not for an image) and one
  failing image of the same class, where there is one; of any class otherwise. Parameters of both distributions are 1,
  as in AugMix.
- Known images are `replay`, which the method cannot do without; failing and passing repair images are learned as they
  are. Mixtures are only made for the known images of a batch, without the moves of `augment`.
- Training is the service's (training.py): distilled, averaged, walked back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from archrepair_core.batches import Batch
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import DatasetError
from archrepair_core.features import Features, Indices
from archrepair_core.match import known_scale_of
from archrepair_core.prefix_cache import INPUT, PrefixCache
from archrepair_core.scope import NETWORK
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.lesson import Tail
from archrepair_core.search.search import run_alone
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.training import TrainingPlan

CONSISTENCY = 12.0
NUM_CHAINS, MAX_DEPTH = 2, 3
NUM_MIXTURES = 2
TINY = 1e-7


def train_on_mixtures(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the network, trained on known images and their mixtures with failing ones."""

    @contextmanager
    def lesson(
        _model: nn.Module, tail: Tail, features: Features, plan: TrainingPlan
    ) -> Iterator[tuple[Features, TrainingPlan]]:
        mixer, others = mixer_of(arena.starts["original"]), plan.penalty

        def penalty(batch: Batch) -> Tensor:
            # Before the mixtures run: it is about the forward pass of the batch.
            other = others(batch) if others else torch.zeros((), device=batch.inputs.device)
            return other + CONSISTENCY * inconsistency(tail, mixer, batch)

        yield features, replace(plan, penalty=penalty)

    return run_alone(arena, Genotype(NETWORK), lesson, deadline=deadline, epochs=epochs)


@dataclass(frozen=True)
class Mixer:
    """Makes mixtures of known images; `first` is the place of the first of them among the training inputs."""

    known: LabelledImages
    failing: LabelledImages
    first: int
    cache: PrefixCache

    def inputs(self, items: Indices, rng: np.random.Generator) -> list[Tensor]:
        """Model inputs of known images as they are, and of `NUM_MIXTURES` mixtures of each, in this order."""
        white = known_scale_of(self.known.images, self.cache.preprocessing)
        pixels = self.known.images[items]
        mixtures = []
        for _ in range(NUM_MIXTURES):
            chains = [changed_by_chain(pixels, rng, white=white) for _ in range(NUM_CHAINS)]
            mixtures.append(mixed(pixels, [*chains, self._guides(self.known.labels[items], rng)], rng, white=white))
        return [to_tensor(each, self.cache.preprocessing).to(self.cache.device) for each in (pixels, *mixtures)]

    def _guides(self, labels_N: Indices, rng: np.random.Generator) -> np.ndarray:
        """A failing image for each label, of that class where there is one."""
        rows = []
        for label in labels_N:
            alike = np.flatnonzero(self.failing.labels == label)
            rows.append(int(rng.choice(alike) if len(alike) else rng.integers(len(self.failing))))
        return self.failing.images[rows]


def mixer_of(cache: PrefixCache) -> Mixer:
    """Of the known images, and the repair images that the original fails on. Raises DatasetError for other images than
    those that operations are defined on."""
    channels = cache.splits["replay"].images.shape[3]
    if channels not in (1, 3):
        raise DatasetError(
            "channels_not_augmentable",
            f"'fewshot_mix' changes images of 1 or 3 channels, and these have {channels}",
            hint="choose another repair.method",
        )
    failing = np.flatnonzero(~cache.features(INPUT, "repair").passing_N)
    repair = cache.splits["repair"]
    return Mixer(cache.splits["replay"], repair.subset(failing), len(repair), cache)


def changed_by_chain(images_NHWC: np.ndarray, rng: np.random.Generator, *, white: float) -> np.ndarray:
    """The images after one to three random operations."""
    as_bytes = np.rint(np.clip(images_NHWC / white, 0, 1) * 255).astype(np.uint8)
    chain = v2.RandAugment(num_ops=int(rng.integers(1, MAX_DEPTH + 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        changed = chain(torch.from_numpy(as_bytes).permute(0, 3, 1, 2))
    return np.asarray(changed.permute(0, 2, 3, 1)) * (white / 255)


def mixed(
    images_NHWC: np.ndarray, chains: Sequence[np.ndarray], rng: np.random.Generator, *, white: float
) -> np.ndarray:
    """m·image + (1 − m)·Σ w·chain, with w from Dirichlet(1) and m from Beta(1, 1) for each image; same dtype."""
    count = len(images_NHWC)
    weights_NW, share_N111 = rng.dirichlet(np.ones(len(chains)), count), rng.beta(1.0, 1.0, (count, 1, 1, 1))
    sums = np.einsum("nw,wnhyc->nhyc", weights_NW, np.stack(chains).astype(np.float64))
    values = np.clip(share_N111 * images_NHWC + (1 - share_N111) * sums, 0, white)
    return (np.rint(values) if images_NHWC.dtype == np.uint8 else values).astype(images_NHWC.dtype)


def inconsistency(tail: Tail, mixer: Mixer, batch: Batch) -> Tensor:
    """Mean Jensen-Shannon divergence among the answers to each known image of the batch and its mixtures.

    0 without a known image. Chance comes from torch, so that a training which goes on from a checkpoint mixes on as it
    would have.
    """
    items = batch.items[batch.items >= mixer.first] - mixer.first
    if not len(items):
        return torch.zeros((), device=batch.inputs.device)
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    inputs = mixer.inputs(items, rng)
    answers = tail(torch.cat(inputs)).float().softmax(1).unflatten(0, (len(inputs), len(items)))
    return jensen_shannon(answers)


def jensen_shannon(answers_MNK: Tensor) -> Tensor:
    """Mean over N of the mean KL of M distributions from their mean."""
    mean_NK = answers_MNK.mean(0).clamp(TINY, 1).log()
    return F.kl_div(mean_NK.expand_as(answers_MNK), answers_MNK, reduction="none").sum(2).mean()
