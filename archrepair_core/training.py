"""The one training loop of every repair: distilled against regressions, clipped, averaged, stopped when it diverges.

A *scope* is the names of the modules that train; `NETWORK` trains everything. Only modules inside the scope are in
train mode: what lies below the cut was cached in eval mode, and what lies after it keeps its statistics. So do the
batch-norms inside: repair sets are small, and the statistics of a small batch broke more answers than they fixed
(docs/results.md). Only the batch-norms of a new branch, which have none yet, learn them.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from archrepair_core.features import Features
from archrepair_core.spec import Repair

Scope = tuple[str, ...]
NETWORK: Scope = ("",)

# One step moves the weights by this share of their norm at the peak of the schedule; see `find_learning_rate`.
RELATIVE_STEP = 5e-4
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
MAX_GRADIENT_NORM = 1.0
# λ: against 1 and 0 it broke a quarter fewer answers at the same gain (docs/results.md).
DISTILLATION = 3.0
# The rate rises over this share of the run and then stays, so that the average covers many good points.
WARM_UP_SHARE = 0.15
AVERAGE_FROM_SHARE = 0.25
NUM_TRIED_STEPS = 4
# Parameters of this name choose between operations (search/supernet.py).
ALPHAS_SUFFIX = ".alphas"
ALPHA_RATE = 0.01
MAX_EPOCHS = 40
# A run whose loss stands above this multiple of where it began (plus one) will not come back.
DIVERGED_FACTOR = 3.0


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how hard: `epochs` passes (None: as many as the deadline allows), λ of the distillation.

    `deadline` is in `time.monotonic()` seconds; training ends there whatever `epochs` says. `penalty` is added to the
    loss of every batch; it is asked after the forward pass it is about.
    """

    epochs: int | None
    deadline: float
    seed: int
    batch_size: int = 64
    distillation: float = DISTILLATION
    learning_rate: float | None = None
    penalty: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class TrainingRun:
    """What training did: mean loss per epoch, the learning rate it found, steps, seconds, and whether it diverged."""

    losses: tuple[float, ...]
    learning_rate: float
    steps: int
    seconds: float
    diverged: bool


def distillation_weight(asked: Repair) -> float:
    """λ, where the spec leaves it open."""
    return DISTILLATION if asked.distillation == "auto" else asked.distillation


def in_scope(name: str, scope: Scope) -> bool:
    """Whether the parameter, buffer or module `name` lies in one of the modules of `scope`."""
    return any(part == "" or name == part or name.startswith(f"{part}.") for part in scope)


def train(
    model: nn.Module,
    tail: Callable[[Tensor], Tensor],
    features: Features,
    *,
    scope: Scope,
    plan: TrainingPlan,
    on_step: Callable[[int, int], None] = lambda _step, _total: None,
) -> TrainingRun:
    """Train `scope` of `model` in place on cached features; afterwards its weights are the average over the run's
    last three quarters (Izmailov et al., "Averaging Weights Leads to Wider Optima", UAI 2018).

    Loss: cross-entropy + λ·KL(original ‖ new) on inputs the original got right (focal distillation; Yan et al.,
    "Positive-Congruent Training", CVPR 2021). A diverging run starts again at a quarter of the learning rate, twice.
    """
    began = {name: value.clone() for name, value in scoped_state(model, scope).items()}
    found = try_steps(model, tail, features, scope=scope, plan=plan)
    load_scoped_state(model, began)  # batch-norm counted the inputs of the tried steps
    epochs = plan.epochs or found.epochs_until(plan.deadline, steps=_steps_per_epoch(features, plan))
    for attempt in range(3):
        rate = (plan.learning_rate or found.learning_rate) / 4**attempt
        attempted = replace(plan, learning_rate=rate, epochs=epochs)
        run = _train_once(model, tail, features, scope=scope, plan=attempted, on_step=on_step)
        if not run.diverged:
            return run
        load_scoped_state(model, began)
    return run


def scoped_state(model: nn.Module, scope: Scope) -> dict[str, Tensor]:
    """The live tensors of the state dict that lie in `scope`."""
    return {name: value for name, value in model.state_dict().items() if in_scope(name, scope)}


def load_scoped_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy `state` into the tensors of the same names, in place; the others stay as they are."""
    live = model.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            live[name].copy_(value)


@dataclass(frozen=True)
class TriedSteps:
    """What a few steps without an update tell: the learning rate to use, and the seconds one step takes."""

    learning_rate: float
    seconds_per_step: float

    def epochs_until(self, deadline: float, *, steps: int) -> int:
        """Epochs of so many steps until `deadline`, rounded up: the deadline itself ends the last one."""
        return min(max(1, math.ceil((deadline - time.monotonic()) / (steps * self.seconds_per_step))), MAX_EPOCHS)


def try_steps(
    model: nn.Module, tail: Callable[[Tensor], Tensor], features: Features, *, scope: Scope, plan: TrainingPlan
) -> TriedSteps:
    """Find the rate at which one clipped step moves the scope's weights by `RELATIVE_STEP` of their norm.

    Found on the data: the gradient norm is the mean over the first batches, the weight norm the scope's own, so a
    model with weights or losses of another size needs no other constant.
    """
    parameters = _select_parameters(model, scope)
    norms, seconds = [], []
    with _training_mode(model, scope), torch.enable_grad():
        batches = _batches(features, replace(plan, epochs=NUM_TRIED_STEPS), device=parameters[0].device)
        for _, batch in zip(range(NUM_TRIED_STEPS), batches, strict=False):
            started = time.monotonic()
            gradients = torch.autograd.grad(_loss(tail, batch, plan), parameters, allow_unused=True)
            norms.append(_norm([g for g in gradients if g is not None]))
            seconds.append(time.monotonic() - started)
    gradient_norm = min(float(np.mean(norms)), MAX_GRADIENT_NORM)
    weight_norm = _norm([parameter.detach() for parameter in parameters])
    rate = RELATIVE_STEP * max(weight_norm, 1e-3) / max(gradient_norm, 1e-3)
    return TriedSteps(rate, float(np.median(seconds)) + 1e-4)


def _train_once(
    model: nn.Module,
    tail: Callable[[Tensor], Tensor],
    features: Features,
    *,
    scope: Scope,
    plan: TrainingPlan,
    on_step: Callable[[int, int], None],
) -> TrainingRun:
    started = time.monotonic()
    parameters = _select_parameters(model, scope)
    rate = plan.learning_rate or 0.0
    optimizers = make_optimizers(model, scope, rate)
    total_steps = (plan.epochs or 1) * _steps_per_epoch(features, plan)
    average = _Average(scoped_state(model, scope))
    losses: list[float] = []
    with _training_mode(model, scope), torch.enable_grad():
        for step, batch in enumerate(_batches(features, plan, device=parameters[0].device)):
            if time.monotonic() > plan.deadline:
                break
            optimizers[0].param_groups[0]["lr"] = rate * _warm_up(step / total_steps)
            loss = _loss(tail, batch, plan)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            for optimizer in optimizers:
                optimizer.step()
            if step >= AVERAGE_FROM_SHARE * (total_steps - 1):
                average.add(scoped_state(model, scope))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]) or np.mean(losses[-5:]) > DIVERGED_FACTOR * losses[0] + 1:
                return TrainingRun(tuple(losses), rate, step, time.monotonic() - started, diverged=True)
            on_step(step + 1, total_steps)
    load_scoped_state(model, average.state)
    return TrainingRun(
        _per_epoch(losses, _steps_per_epoch(features, plan)),
        rate,
        len(losses),
        time.monotonic() - started,
        diverged=False,
    )


@dataclass(frozen=True)
class _Batch:
    inputs: Tensor
    labels_N: Tensor
    original_NK: Tensor


def _batches(features: Features, plan: TrainingPlan, *, device: torch.device) -> Iterator[_Batch]:
    """`plan.epochs` shuffled passes, each input under a view drawn anew; batch-norm cannot train on a batch of one."""
    rng = np.random.default_rng(plan.seed)
    num_items = len(features)
    for _ in range(plan.epochs or 1):
        order = rng.permutation(num_items)
        for start in range(0, num_items, plan.batch_size):
            items = order[start : start + plan.batch_size]
            if len(items) == 1 and num_items > 1:
                items = np.concatenate([items, order[:1]])
            views = rng.integers(features.num_views_N[items])
            yield _Batch(
                features.batch(views, items, device),
                features.labels_N[items].to(device),
                features.original_NK[items].to(device),
            )


def _loss(tail: Callable[[Tensor], Tensor], batch: _Batch, plan: TrainingPlan) -> Tensor:
    logits = tail(batch.inputs)
    loss = F.cross_entropy(logits, batch.labels_N)
    if plan.penalty is not None:
        loss = loss + plan.penalty()
    if not plan.distillation:
        return loss
    was_right = batch.original_NK.argmax(1) == batch.labels_N
    divergence = F.kl_div(
        F.log_softmax(logits, 1), F.log_softmax(batch.original_NK, 1), reduction="none", log_target=True
    )
    return loss + plan.distillation * (divergence.sum(1) * was_right).mean()


def make_optimizers(model: nn.Module, scope: Scope, rate: float) -> list[torch.optim.Optimizer]:
    """SGD for the weights of `scope`, first; Adam for the alphas of its supernets, where it has any.

    Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019, section 3: the architect's own optimizer.
    """
    parameters = dict(model.named_parameters())
    chosen = [name for name in parameters if in_scope(name, scope)]
    weights = [parameters[name] for name in chosen if not name.endswith(ALPHAS_SUFFIX)]
    alphas = [parameters[name] for name in chosen if name.endswith(ALPHAS_SUFFIX)]
    sgd = torch.optim.SGD(weights, lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    return [sgd, torch.optim.Adam(alphas, lr=ALPHA_RATE, betas=(0.5, 0.999))] if alphas else [sgd]


def _select_parameters(model: nn.Module, scope: Scope) -> list[nn.Parameter]:
    selected = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(in_scope(name, scope))
        if parameter.requires_grad:
            selected.append(parameter)
    return selected


class _training_mode:
    """Modules of the scope in train mode, but batch-norms with statistics of their own; all in eval mode afterwards."""

    def __init__(self, model: nn.Module, scope: Scope) -> None:
        self.model, self.scope = model, scope

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            has_statistics = isinstance(module, _BatchNorm) and ".branch." not in f".{name}."
            module.training = in_scope(name, self.scope) and not has_statistics

    def __exit__(self, *_exc: object) -> None:
        self.model.eval()


class _Average:
    """The uniform average of the states it is given; the first one's until then."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.clone() for name, value in state.items()}
        self.count = 0

    def add(self, live: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in live.items():
            if value.is_floating_point():
                self.state[name].lerp_(value.detach(), 1 / self.count)
            else:
                self.state[name].copy_(value)


def _warm_up(progress: float) -> float:
    """Share of the full rate: from a tenth up to all of it."""
    return min(1.0, 0.1 + 0.9 * progress / WARM_UP_SHARE)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm()) if tensors else 0.0


def _steps_per_epoch(features: Features, plan: TrainingPlan) -> int:
    return math.ceil(len(features) / plan.batch_size)


def _per_epoch(losses: list[float], steps: int) -> tuple[float, ...]:
    return tuple(float(np.mean(losses[i : i + steps])) for i in range(0, len(losses), steps))
