"""`apricot`: move the weights towards reduced models that answer failing inputs right, and away from the others.

Zhang & Chan, "Apricot: A Weight-Adaptation Approach to Fixing Deep Learning Models", ASE 2019. The architecture is
trained on random subsets of the training data. Then, in iterations: for each failing input, every weight goes towards
the mean of the reduced models that are right, by their share, and away from the mean of those that are wrong, by
theirs, at rate 0.001; what validation does not like is undone; and the model is trained on the training data. The
formula is that of the re-implementation by Arachne's authors (coinse/arachne, apricot/weight_adjust.py).

Deviations and choices:
- Training data is `replay`, and the repair inputs with it; training is the service's (training.py), distilled but for
  the reduced models, which are to differ.
- The reduced models start from the weights of the original, so that a mean of weights means something; the authors'
  number and length of trainings are not known to us. Here: ten, each on half of `replay`, in half of the time.
- Failing inputs are those of repair and replay that the original gets wrong, as far as they still fail; all of them are
  taken in each of three iterations, one after the other, before validation looks.
- Of all states that were looked at the one that validation liked best is the result.
- The result is walked back towards the original as validation likes (off with `interpolate: false`).
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.features import Features
from archrepair_core.prefix_cache import INPUT
from archrepair_core.processes import is_over
from archrepair_core.scope import NETWORK, load_scoped_state, scoped_state
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import leave_time_to_walk, walk_back_
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.selection import run_tail, score_tail
from archrepair_core.training import OnStep, TrainingRun, train

NUM_REDUCED = 10
SUBSET_SHARE = 0.5
REDUCED_SHARE = 0.5  # of the time
RATE = 1e-3
NUM_ITERATIONS = 3


def adapt_weights(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the network as validation liked it last; `epochs` is the length of each training."""
    if arena.is_stopped:
        return []
    started = time.monotonic()
    cache = arena.starts["original"]
    until, alphas = leave_time_to_walk(arena, deadline, epochs=epochs)
    model = copy.deepcopy(cache.model)
    start = _state_of(model)
    training, validation = cache.features(INPUT, "training"), cache.features(INPUT, "validation")
    failing = training.subset(np.flatnonzero(~training.passing_N))
    reduced_until = started + REDUCED_SHARE * (until - started)
    weights_R, right_RF = train_reduced(arena, failing, epochs=epochs, until=reduced_until)
    best, best_accuracy = start, score_tail(model, validation, cache.device).accuracy
    runs: list[TrainingRun] = []
    for iteration in range(NUM_ITERATIONS):
        if runs and is_over(until, arena.stopped):
            break
        still_wrong = ~_right(model, failing, cache.device)
        arena.on_progress(f"iteration {iteration + 1} of {NUM_ITERATIONS}: {int(still_wrong.sum())} inputs fail")
        before = _state_of(model)
        adjust_(model, weights_R, right_RF[:, still_wrong])
        accuracy = score_tail(model, validation, cache.device).accuracy
        if accuracy > best_accuracy:
            best = _state_of(model)
            best_accuracy = accuracy
        else:
            load_scoped_state(model, before)
        now = time.monotonic()
        plan = arena.plan(epochs, now + (until - now) / (NUM_ITERATIONS - iteration), name=f"iteration {iteration + 1}")
        runs.append(train(model, model, training, scope=NETWORK, plan=plan, on_step=_telling(arena, plan.name)))
        if (accuracy := score_tail(model, validation, cache.device).accuracy) >= best_accuracy:
            best = _state_of(model)
            best_accuracy = accuracy
    load_scoped_state(model, best)
    genotype = Genotype(NETWORK)
    alpha, score = walk_back_(arena, model, model, genotype, cut_name=INPUT, scope=NETWORK, start=start, alphas=alphas)
    return [Trial(genotype, model, alpha, score, _together(runs, seconds=time.monotonic() - started))]


def train_reduced(
    arena: Arena, failing: Features, *, epochs: int | None, until: float
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """The weights of models that know a random half of the known images each, and which of the F failing inputs each is
    right on [R, F]; at least two models, fewer than asked for where time ends."""
    cache = arena.starts["original"]
    known = cache.features(INPUT, "replay")
    rng = np.random.default_rng(arena.seed)
    size = max(1, round(SUBSET_SHARE * len(known)))
    weights_R: list[dict[str, Tensor]] = []
    right_RF: list[Tensor] = []
    for number in range(NUM_REDUCED):
        if len(weights_R) >= 2 and is_over(until, arena.stopped):
            break
        items = np.sort(rng.permutation(len(known))[:size])
        now = time.monotonic()
        plan = arena.plan(
            epochs, now + max(0.0, until - now) / (NUM_REDUCED - number), name=f"reduced model {number + 1}"
        )
        model = copy.deepcopy(cache.model)
        plan = replace(plan, distillation=0.0, seed=arena.seed + number)
        train(model, model, known.subset(items), scope=NETWORK, plan=plan, on_step=_telling(arena, plan.name))
        # Asked at once: with many failing inputs the answers take as long as the training.
        right_RF.append(_right(model.eval(), failing, cache.device))
        weights_R.append(parameters_of(model))
    return weights_R, torch.stack(right_RF)


def adjust_(model: nn.Module, weights_R: Sequence[dict[str, Tensor]], right_RF: Tensor) -> None:
    """Adjust in place: w ← w + rate·(p·(mean right − w) − q·(mean wrong − w)), for failing inputs F one after another.

    p and q are the shares of the R reduced models that are right and wrong, so that p times the mean of those that are
    right is their sum over R: the whole is a linear combination of w and the reduced weights.
    """
    of_w, of_R = 1.0, torch.zeros(len(weights_R), dtype=torch.float64)
    for right_R in right_RF.T.double():
        signed_R = (2 * right_R - 1) / len(weights_R)
        kept = 1 - RATE * float(signed_R.sum())
        of_w, of_R = kept * of_w, kept * of_R + RATE * signed_R
    with torch.no_grad():
        for name, weight in parameters_of(model).items():
            weight.mul_(of_w)
            for factor, reduced in zip(of_R.tolist(), weights_R, strict=True):
                weight.add_(reduced[name], alpha=factor)


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The live weights by name, those that are numbers to average."""
    return {name: value.detach() for name, value in model.named_parameters() if value.is_floating_point()}


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in scoped_state(model, NETWORK).items()}


def _right(model: nn.Module, features: Features, device: torch.device) -> Tensor:
    return run_tail(model, features, device).argmax(1) == features.labels_N


def _telling(arena: Arena, name: str) -> OnStep:
    return lambda step, total, loss: arena.on_progress(
        f"{name}: step {step} of {total}", step=step, total_steps=total, loss=loss
    )


def _together(runs: Sequence[TrainingRun], *, seconds: float) -> TrainingRun:
    return TrainingRun(
        losses=tuple(loss for run in runs for loss in run.losses),
        learning_rate=runs[-1].learning_rate,
        steps=sum(run.steps for run in runs),
        seconds=seconds,
        diverged=runs[-1].diverged,
    )
