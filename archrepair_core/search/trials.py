"""What the trials of a job share, and what each of them leaves."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archrepair_core.alignment import healthy_fingerprint, tells_healthy
from archrepair_core.blocks import Block
from archrepair_core.certificate import Points
from archrepair_core.checkpoint import Checkpoints
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.fingerprint import Fingerprint
from archrepair_core.precision import Precision
from archrepair_core.prefix_cache import ROLES, PrefixCache
from archrepair_core.processes import agreed, never
from archrepair_core.progress import Tell
from archrepair_core.restoration import Restoration
from archrepair_core.search.genotype import Genotype, Start
from archrepair_core.selection import Guard, Score
from archrepair_core.spec import Repair
from archrepair_core.training import TrainingPlan, TrainingRun, distillation_weight


@dataclass(frozen=True)
class SearchRecord:
    """How a supernet was searched: per snapshot, edge and operation its share of the sum (first and last included).

    Validation accuracies: with every operation, and of the derived cell before it was trained on.
    """

    select: str
    shares: tuple[dict[str, dict[str, float]], ...]
    supernet_accuracy: float
    derived_accuracy: float | None
    seconds: float
    training: TrainingRun


@dataclass(frozen=True)
class Trial:
    """One trained candidate: the model at its chosen α, what validation says of it, and how it was trained.

    `certifies` are the inputs that the model is to be proved right on, where it was made for that.
    """

    genotype: Genotype
    model: nn.Module
    alpha: float
    score: Score
    run: TrainingRun
    search: SearchRecord | None = None
    certifies: Points | None = None


@dataclass(frozen=True)
class Arena:
    """What every trial shares: the original, features cached for each place to start from, blocks, limits, seed.

    `settling_seconds` is what training the first guess well takes, `scoring_seconds` what asking validation and the
    guard about one α does at most; `max_guard_broken` and `max_guard_lost` the shares
    of the guard that may be broken, and lost on balance; `reference` an earlier good version of the model; `fault` the
    kind it looks like; `keep_K` how much right answers of each class are to be kept;
    `field_margins_M` the original's margins on the field, where it tells more than validation; `restoration` what known
    images are to be like, where they are replayed through a recognised corruption; `bold` whether so little works of
    the field that training may go far.
    """

    original: nn.Module
    starts: Mapping[Start, PrefixCache]
    blocks: dict[str, Block]
    limits: Repair
    max_broken: float
    settling_seconds: float
    seed: int
    on_progress: Tell
    precision: Precision = "float32"
    checkpoints: Checkpoints | None = None
    scoring_seconds: float = 0.0
    max_guard_broken: float = math.inf
    max_guard_lost: float = math.inf
    reference: nn.Module | None = None
    fault: str = "unknown"
    keep_K: Tensor | None = None
    field_margins_M: Tensor | None = None
    restoration: Restoration | None = None
    bold: bool = False
    stopped: Callable[[], bool] = never

    @property
    def is_stopped(self) -> bool:
        """Whether the best so far is wanted now: nothing new is begun, and what is trained ends with the step."""
        return bool(agreed(float(self.stopped())))

    def plan(self, epochs: float | None, deadline: float, *, name: str) -> TrainingPlan:
        """How every training of this job is done; `name` says of what."""
        return TrainingPlan(
            epochs=epochs,
            deadline=deadline,
            seed=self.seed,
            distillation=distillation_weight(self.limits, bold=self.bold),
            keep_K=self.keep_K,
            precision=self.precision,
            checkpoints=self.checkpoints,
            name=name,
            stopped=self.stopped,
            bold=self.bold,
        )

    def decide(self, value: float) -> float:
        """What hangs on a clock or a stopwatch, as all processes and every later attempt of the job take it to be."""
        return self.checkpoints.decide(value) if self.checkpoints else agreed(value)

    def guard_at(self, cut_name: str, start: Start = "original") -> Guard | None:
        """What works today and must not be lost, as features at a cut; None when nothing was set aside for it."""
        cache = self.starts[start]
        if "guard" not in cache.splits:
            return None
        return Guard(cache.features(cut_name, "guard"), self.max_guard_broken, self.max_guard_lost)

    @property
    def has_labels(self) -> bool:
        """Whether there are answers to learn from, on repair or replay inputs, and on validation to choose by."""
        splits = self.starts["original"].splits
        teaching = [splits[role] for role in ROLES["training"] if role in splits]
        return "validation" in splits and splits["validation"].labelled and any(part.labelled for part in teaching)

    @property
    def shows_only_failures(self) -> bool:
        """Whether the original fails all of validation, and what a repair breaks in the field cannot be seen there."""
        cache = self.starts["original"]
        labels_N = torch.as_tensor(cache.splits["validation"].labels)
        return not bool((cache.original_logits["validation"].argmax(1) == labels_N).any())

    @property
    def num_repair(self) -> int:
        """Inputs to repair with, validation left out."""
        return len(self.starts["original"].splits["repair"])

    @property
    def tells_healthy(self) -> bool:
        """Whether anything tells the statistics to align to."""
        return tells_healthy(self.starts["original"], self.reference)

    def healthy(self) -> Fingerprint:
        """The statistics to align to. Raises SpecError where nothing tells them."""
        return healthy_fingerprint(self.starts["original"], self.reference)

    def sample(self) -> Tensor:
        """A few repair images as model input, to check cuts and measure cost with."""
        cache = self.starts["original"]
        return to_tensor(cache.splits["repair"].images[:8], cache.preprocessing).to(cache.device)
