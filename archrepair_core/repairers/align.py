"""Align: train a block, without labels, until what comes after it has the statistics of a healthy day again.

A network with batch-norm remembers the mean and variance of every channel it normalises. A damaged block changes them
for all layers behind it; a few dozen unlabelled inputs and some hundred steps change them back.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.alignment import watched_divergence
from archrepair_core.fingerprint import Fingerprint
from archrepair_core.prefix_cache import Features
from archrepair_core.processes import is_over, never
from archrepair_core.scope import NETWORK, Scope, in_scope, scoped_state
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import cut_before, trained, walk_back_
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.training import OnStep, TrainingRun

STEPS = 150
# Adam's, whose steps do not depend on the scale of the loss.
RATE = 1e-3
WARM_UP_STEPS = 15
BATCH_SIZE = 64


def align_block(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """Train each suspect, or the network (`level="network"`), towards the healthy statistics; the best comes first.

    Raises SpecError where nothing says what healthy is.
    """
    healthy = arena.healthy()
    scopes: list[Scope] = [NETWORK] if level == "network" else [(suspect,) for suspect in suspects]
    trials: list[Trial] = []
    for tried, scope in enumerate(scopes):
        now = time.monotonic()
        if trials and (arena.is_stopped or now >= deadline):
            break
        until = now + (deadline - now) / (len(scopes) - tried)
        trials.append(_align(arena, scope, healthy, deadline=until, epochs=epochs))
    return sorted(trials, key=lambda trial: -trial.score.utility)


def _align(arena: Arena, scope: Scope, healthy: Fingerprint, *, deadline: float, epochs: int | None) -> Trial:
    cache = arena.starts["original"]
    model = copy.deepcopy(cache.model)
    cut_name, tail = cut_before(arena, model, scope)
    genotype, trained_scope = Genotype(scope), trained(scope, arena.blocks)
    start = {name: value.clone() for name, value in scoped_state(model, trained_scope).items()}
    run = train_towards_(
        model,
        tail,
        cache.features(cut_name, "repair"),
        scope=trained_scope,
        healthy=healthy,
        steps=None if epochs is None else epochs * math.ceil(len(cache.splits["repair"]) / BATCH_SIZE),
        deadline=deadline,
        seed=arena.seed,
        stopped=arena.stopped,
        on_step=lambda step, total, loss: arena.on_progress(
            f"aligning {', '.join(scope)}: step {step} of {total}", step=step, total_steps=total, loss=loss
        ),
    )
    alpha, score = walk_back_(arena, model, tail, genotype, cut_name=cut_name, scope=trained_scope, start=start)
    return Trial(genotype, model, alpha, score, run)


def train_towards_(
    model: nn.Module,
    tail: Callable[[Tensor], Tensor],
    features: Features,
    *,
    scope: Scope,
    healthy: Fingerprint,
    steps: int | None,
    deadline: float,
    seed: int,
    stopped: Callable[[], bool] = never,
    on_step: OnStep = lambda _step, _total, _loss: None,
) -> TrainingRun:
    """Train the parameters of `scope` in place so that the statistics behind the cut become the healthy ones.

    The model stays in eval mode: its record of statistics is the aim, not something to learn.
    """
    started = time.monotonic()
    total = steps or STEPS
    parameters = [parameter for name, parameter in model.named_parameters() if in_scope(name, scope)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(in_scope(name, scope))
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    with watched_divergence(model, healthy) as divergence, torch.enable_grad():
        while len(losses) < total and (not losses or not is_over(deadline, stopped)):
            optimizer.param_groups[0]["lr"] = RATE * _schedule(len(losses), total)
            tail(_draw(features, rng, parameters[0].device))
            loss = divergence()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            on_step(len(losses), total, losses[-1])
    seconds = time.monotonic() - started
    return TrainingRun(tuple(losses), RATE, len(losses), seconds, diverged=not math.isfinite(losses[-1]))


def _draw(features: Features, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Some inputs, none of them twice, each under a view drawn anew."""
    items = rng.permutation(len(features))[:BATCH_SIZE]
    return features.batch(rng.integers(features.num_views_N[items]), items, device)


def _schedule(step: int, total: int) -> float:
    """Share of the full rate: a warm-up, then half a cosine down to nothing."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / total))
