"""The one training loop of every repair: distilled against regressions, clipped, averaged, stopped when it diverges.

A *scope* is the names of the modules that train; `NETWORK` trains everything. Only modules inside the scope are in
train mode: what lies below the cut was cached in eval mode, and what lies after it keeps its statistics. So do the
batch-norms inside: repair sets are small, and the statistics of a small batch broke more answers than they fixed
(docs/choices.md). Only the batch-norms of a new branch, which have none yet, learn them: as the mean over the first
batches, for those of torch begin at zero mean and unit variance, and a short training ended before they had left it.
"""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archrepair_core.batches import Batch, draws, read_batch
from archrepair_core.checkpoint import Checkpoint, Checkpoints, Saved
from archrepair_core.course import MAX_EPOCHS, Course
from archrepair_core.features import Features, Indices
from archrepair_core.margins import lost_margin
from archrepair_core.modes import training_mode
from archrepair_core.optimizers import WEIGHT_DECAY, make_optimizers
from archrepair_core.precision import Precision, autocast
from archrepair_core.processes import agreed, is_over, mean_of_all, never, seed_of_process, sum_gradients, summed
from archrepair_core.scope import Scope, in_scope, load_scoped_state, scoped_state
from archrepair_core.spec import Repair
from archrepair_core.training_state import TrainingState

# Hears after every step its number, that of all, and its loss: where it lies on a GPU, reading it waits.
OnStep = Callable[[int, int, SupportsFloat], None]

# One step moves the weights by this share of their norm at the peak of the schedule; see `try_steps`.
RELATIVE_STEP = 5e-4
# A bold one moves each weight by about this share of their root mean square.
BOLD_STEP = 0.0125
MAX_GRADIENT_NORM = 1.0
# What no norm is taken to be smaller than.
MIN_NORM = 1e-3
# λ: against 1 and 0 it broke a quarter fewer answers at the same gain (docs/choices.md).
DISTILLATION, BOLD_DISTILLATION = 3.0, 1.0
AVERAGE_FROM_SHARE, BOLD_AVERAGE_FROM_SHARE = 0.25, 0.5
NUM_TRIED_STEPS = 4
NUM_SETTLING, SETTLING_BATCH = 4, 64
# A run whose loss stands above this multiple of where it began (plus one) will not come back.
DIVERGED_FACTOR = 3.0
# A loss is looked at only so often: on a GPU looking means waiting for it.
LOOK_EVERY = 8
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how hard: `epochs` passes or part of one (None: as many as the deadline allows), the weight λ of the
    distillation.

    `deadline` is in `clock()` seconds; training ends there whatever `epochs` says. `keep_K` weighs the distillation by
    class. `penalty` is added to the loss of every batch; it is asked, with the batch, after the forward pass it is
    about. With `checkpoints`, a training that was interrupted goes on, and one that was finished is not repeated;
    `name` tells it from others that begin alike. `score` is what validation says of the model as it is, more is better,
    and its standard error: training stops when it gets worse. `stopped` says whether somebody wants what there is now.
    `carried` are tensors that change with the training besides what it trains, in place; a checkpoint holds them too.
    `bold` is for a network of which little works: AdamW instead of SGD, and an average of the second half alone. It
    goes further in the same seconds, and breaks more of what there is to break (docs/choices.md).
    """

    epochs: float | None
    deadline: float
    seed: int
    batch_size: int = 64
    distillation: float = DISTILLATION
    keep_K: Tensor | None = None
    learning_rate: float | None = None
    penalty: Callable[[Batch], Tensor] | None = None
    precision: Precision = "float32"
    checkpoints: Checkpoints | None = None
    name: str = ""
    score: Callable[[], tuple[float, float]] | None = None
    stopped: Callable[[], bool] = never
    weight_decay: float = WEIGHT_DECAY
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    bold: bool = False


@dataclass(frozen=True)
class TrainingRun:
    """What training did: mean loss per epoch, the learning rate it found, steps, seconds, and whether it diverged.

    Of a search: what the fitness lacks of its highest, per generation, and candidates for steps.
    """

    losses: tuple[float, ...]
    learning_rate: float
    steps: int
    seconds: float
    diverged: bool


def distillation_weight(asked: Repair, *, bold: bool) -> float:
    """λ, where the spec leaves it open."""
    if asked.distillation != "auto":
        return asked.distillation
    return BOLD_DISTILLATION if bold else DISTILLATION


def train(
    model: nn.Module,
    tail: Callable[[Tensor], Tensor],
    features: Features,
    *,
    scope: Scope,
    plan: TrainingPlan,
    on_step: OnStep = lambda _step, _total, _loss: None,
) -> TrainingRun:
    """Train `scope` of `model` in place on cached features; afterwards its weights are the average over the run's
    last three quarters (Izmailov et al., "Averaging Weights Leads to Wider Optima", UAI 2018).

    Loss: cross-entropy + λ·(KL(original ‖ new) + lost margin) on inputs the original got right: focal distillation (Yan
    et al., "Positive-Congruent Training", CVPR 2021) and `lost_margin`. A diverging run starts again at a quarter of
    the learning rate, twice.
    """
    learner = _Learner(model, tail, features, _select_parameters(model, scope), scope, on_step)
    checkpoint = plan.checkpoints.at(_digest(learner, plan)) if plan.checkpoints else None
    saved = checkpoint.read() if checkpoint else None
    # Chance of its own: what other trainings drew before must not matter, for those may have been left out.
    with _chance_of_its_own(learner.device, plan.seed):
        return _resume(saved, learner) or _train_until_stable(learner, plan, checkpoint=checkpoint, saved=saved)


@dataclass(frozen=True)
class _Learner:
    """What learns, from what."""

    model: nn.Module
    tail: Callable[[Tensor], Tensor]
    features: Features
    parameters: Sequence[nn.Parameter]
    scope: Scope
    on_step: OnStep

    @property
    def device(self) -> torch.device:
        """Where it learns."""
        return self.parameters[0].device


def _digest(learner: _Learner, plan: TrainingPlan) -> str:
    """What the result depends on, as far as one job's trainings can differ in it."""
    features = learner.features
    asked = (plan.name, plan.epochs, plan.seed, plan.batch_size, plan.distillation, plan.learning_rate, plan.precision)
    hasher = hashlib.sha256(repr((asked, learner.scope, int(features.num_views_N.sum()))).encode())
    state = scoped_state(learner.model, learner.scope)
    for name, value in {**state, "labels": features.labels_N, "original": features.original_NK}.items():
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


@contextmanager
def _chance_of_its_own(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of_process(seed))
        yield


def _resume(saved: Saved | None, learner: _Learner) -> TrainingRun | None:
    """The run, when it had been finished."""
    if saved is None or "finished" not in saved.meta:
        return None
    load_scoped_state(learner.model, saved.tensors)
    run = saved.meta["finished"]
    sys.stderr.write(f"training of an earlier attempt is taken over: {run['steps']} steps\n")
    return TrainingRun(**{**run, "losses": tuple(run["losses"])})


def _train_until_stable(
    learner: _Learner, plan: TrainingPlan, *, checkpoint: Checkpoint | None, saved: Saved | None
) -> TrainingRun:
    began = {name: value.clone() for name, value in scoped_state(learner.model, learner.scope).items()}
    if saved:
        course = Course(**saved.meta["course"])
        full_rate, first = saved.meta["full_rate"], saved.meta["attempt"]
    else:
        found = try_steps(learner.model, learner.tail, learner.features, scope=learner.scope, plan=plan)
        load_scoped_state(learner.model, began)  # batch-norm counted the inputs of the tried steps
        steps = math.ceil(len(learner.features) / plan.batch_size)
        course = (
            Course.of(plan.epochs, steps_per_epoch=steps)
            if plan.epochs
            else Course.until(plan.deadline, steps_per_epoch=steps, seconds_per_step=found.seconds_per_step)
        )
        full_rate, first = plan.learning_rate or found.learning_rate, 0
    for attempt in range(first, MAX_ATTEMPTS):
        attempted = replace(plan, learning_rate=full_rate / 4**attempt)
        meta = {"full_rate": full_rate, "attempt": attempt}
        run = _train_once(learner, attempted, course, checkpoint=checkpoint, saved=saved, meta=meta)
        saved = None
        if not run.diverged:
            break
        load_scoped_state(learner.model, began)
    if checkpoint:
        checkpoint.write(scoped_state(learner.model, learner.scope), {"finished": asdict(run)})
    return run


def settle_(model: nn.Module, tail: Callable[[Tensor], Tensor], features: Features, *, scope: Scope, seed: int) -> None:
    """Give new batch-norms of the scope the statistics of what now enters them, over a few batches; nothing trains."""
    batches = islice(draws(features, epochs=NUM_SETTLING, batch_size=SETTLING_BATCH, seed=seed), NUM_SETTLING)
    with training_mode(model, scope) as mode, torch.no_grad():
        for step, (views, items) in enumerate(batches):
            mode.take_means(step=step)
            tail(read_batch(features, views, items, next(model.parameters()).device).inputs)


@dataclass(frozen=True)
class TriedSteps:
    """What a few steps without an update tell: the learning rate to use, and the seconds one step takes."""

    learning_rate: float
    seconds_per_step: float


def try_steps(
    model: nn.Module, tail: Callable[[Tensor], Tensor], features: Features, *, scope: Scope, plan: TrainingPlan
) -> TriedSteps:
    """Find the rate at which one clipped step moves the scope's weights by `RELATIVE_STEP` of their norm; for a bold
    plan that at which AdamW moves each by `BOLD_STEP` of their root mean square.

    Found on the data: the gradient norm is the mean over the first batches, the weight norm the scope's own, so a
    model with weights or losses of another size needs no other constant.
    """
    parameters = _select_parameters(model, scope)
    norms, seconds = [], []
    with training_mode(model, scope), torch.enable_grad():
        for views, items in islice(
            draws(features, epochs=NUM_TRIED_STEPS, batch_size=plan.batch_size, seed=plan.seed), NUM_TRIED_STEPS
        ):
            started = time.monotonic()
            loss = _loss(tail, read_batch(features, views, items, parameters[0].device), plan)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            norms.append(_norm([summed(g) for g in gradients if g is not None]))
            seconds.append(time.monotonic() - started)
    # Weights of nothing, as those of a branch that was just added, have to be able to leave it.
    weight_norm = max(_norm([parameter.detach() for parameter in parameters]), MIN_NORM)
    rate = RELATIVE_STEP * weight_norm / max(min(float(np.mean(norms)), MAX_GRADIENT_NORM), MIN_NORM)
    if plan.bold:
        rate = BOLD_STEP * weight_norm / math.sqrt(sum(parameter.numel() for parameter in parameters))
    return TriedSteps(agreed(rate), agreed(float(np.median(seconds))) + 1e-4)


def _train_once(
    learner: _Learner,
    plan: TrainingPlan,
    course: Course,
    *,
    checkpoint: Checkpoint | None,
    saved: Saved | None,
    meta: dict[str, float],
) -> TrainingRun:
    started = time.monotonic()
    rate, steps = plan.learning_rate or 0.0, course.steps_per_epoch
    optimizers = make_optimizers(learner.model, learner.scope, rate, weight_decay=plan.weight_decay, bold=plan.bold)
    averages_from = BOLD_AVERAGE_FROM_SHARE if plan.bold else AVERAGE_FROM_SHARE
    state = TrainingState(scoped_state(learner.model, learner.scope), optimizers, learner.device, plan.carried)
    if saved:
        state.restore_(saved)
        sys.stderr.write(f"training {plan.name} goes on from a checkpoint: step {state.step} of {course.total_steps}\n")
    diverged, paced_from = False, (state.step, started)
    most = max(MAX_EPOCHS, math.ceil(course.epochs))
    drawn = draws(learner.features, epochs=most, batch_size=plan.batch_size, seed=plan.seed)
    with training_mode(learner.model, learner.scope) as mode, torch.enable_grad():
        for views, items in islice(drawn, state.step, None):
            diverged = state.step % LOOK_EVERY == 0 and _has_diverged(state.seen_losses())
            if diverged or state.step >= course.total_steps or is_over(plan.deadline, plan.stopped):
                break
            optimizers[0].param_groups[0]["lr"] = rate * course.share_of_rate(state.step)
            mode.take_means(step=state.step)
            state.losses.append(_learn(learner, optimizers, views, items, plan=plan))
            if state.step >= averages_from * (course.total_steps - 1):
                state.average.add()
            state.step += 1
            learner.on_step(state.step, course.total_steps, state.losses[-1])
            if state.step >= course.guess_again_at:
                steps_since, now = state.step - paced_from[0], time.monotonic()
                course.end_at(plan.deadline, step=state.step, seconds_per_step=(now - paced_from[1]) / steps_since)
                paced_from = (state.step, now)
            if plan.score and state.step % steps == 0 and _look(learner, mode, state, plan.score) > course.patience:
                break
            if checkpoint and checkpoint.due:
                state.leave(checkpoint, {**meta, "course": asdict(course)}, seconds=time.monotonic() - started)
    if state.step and not state.average.count:
        state.average.add()  # the deadline came before the averaging: what was learned so far, not where it began
    losses = state.seen_losses()
    diverged = diverged or _has_diverged(losses)
    if plan.score and not diverged and state.step % steps:
        _look(learner, mode, state, plan.score)
    if not diverged:
        kept = state.best or state.average.state
        load_scoped_state(learner.model, {name: mean_of_all(value) for name, value in kept.items()})
    seconds = state.seconds_before + time.monotonic() - started
    return TrainingRun(_per_epoch(losses, steps), rate, state.step, seconds, diverged=diverged)


def _look(
    learner: _Learner, mode: training_mode, state: TrainingState, score: Callable[[], tuple[float, float]]
) -> int:
    """Have validation look at the average; returns how many looks ago it saw the one that is kept."""
    if not state.average.count:
        return 0
    live = {name: value.clone() for name, value in state.live.items()}
    load_scoped_state(learner.model, state.average.state)
    learner.model.eval()
    value, standard_error = score()
    state.judge(agreed(value), agreed(standard_error))
    load_scoped_state(learner.model, live)
    mode.turn_on()
    return state.looks_since_best


def _has_diverged(losses: Sequence[float]) -> bool:
    if not losses:
        return False
    return not math.isfinite(losses[-1]) or float(np.mean(losses[-5:])) > DIVERGED_FACTOR * losses[0] + 1


def _learn(
    learner: _Learner,
    optimizers: Sequence[torch.optim.Optimizer],
    views: Indices,
    items: Indices,
    *,
    plan: TrainingPlan,
) -> Tensor:
    """One step; its loss, not looked at yet."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss = _loss(learner.tail, read_batch(learner.features, views, items, learner.device), plan)
    loss.backward()
    sum_gradients(learner.parameters)
    torch.nn.utils.clip_grad_norm_(learner.parameters, MAX_GRADIENT_NORM, foreach=True)
    for optimizer in optimizers:
        optimizer.step()
    return summed(loss.detach())


def _loss(tail: Callable[[Tensor], Tensor], batch: Batch, plan: TrainingPlan) -> Tensor:
    with autocast(batch.inputs.device, plan.precision):
        logits = tail(batch.inputs).float()
    loss = F.cross_entropy(logits, batch.labels_N)
    if plan.penalty is not None:
        loss = loss + plan.penalty(batch)
    if not plan.distillation:
        return batch.weight * loss
    was_right = batch.original_NK.argmax(1) == batch.labels_N
    divergence = F.kl_div(
        F.log_softmax(logits, 1), F.log_softmax(batch.original_NK, 1), reduction="none", log_target=True
    )
    kept = divergence.sum(1) + lost_margin(logits, batch.original_NK, batch.labels_N)
    if plan.keep_K is not None:
        kept = kept * plan.keep_K.to(kept.device)[batch.labels_N]
    return batch.weight * (loss + plan.distillation * (kept * was_right).mean())


def _select_parameters(model: nn.Module, scope: Scope) -> list[nn.Parameter]:
    selected = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(in_scope(name, scope))
        if parameter.requires_grad:
            selected.append(parameter)
    return selected


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm()) if tensors else 0.0


def _per_epoch(losses: list[float], steps: int) -> tuple[float, ...]:
    return tuple(float(np.mean(losses[i : i + steps])) for i in range(0, len(losses), steps))
