"""Batch-norm re-estimation: pull the running statistics towards the repair data. Seconds, and no labels needed.

The weight of the new statistics is chosen on validation: taken whole they can be worse than the old ones (Schneider et
al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020).
"""

import copy
import time
from dataclasses import replace
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from archrepair_core.features import Features
from archrepair_core.fingerprint import has_statistics
from archrepair_core.prefix_cache import INPUT
from archrepair_core.scope import scoped_state
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import walk_back_
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.training import TrainingRun

WEIGHTS = (0.1, 0.3, 0.6, 1.0)
BATCH_SIZE = 128
# Statistics settle within a few hundred inputs.
MAX_INPUTS = 512


def re_estimate_batch_norm(arena: Arena) -> Trial | None:
    """The start model with re-estimated statistics at the best weight; None when it has no running statistics."""
    cache = arena.starts["original"]
    model = copy.deepcopy(cache.model)
    scope = tuple(name for name, module in model.named_modules() if has_statistics(module))
    if not scope:
        return None
    started = time.monotonic()
    start = {name: value.clone() for name, value in scoped_state(model, scope).items()}
    arena.on_progress(f"re-estimating the statistics of {len(scope)} batch-norm layers")
    _estimate_(model, cache.features(INPUT, "repair"))
    plain = Genotype(scope)
    alpha, score = walk_back_(arena, model, model, plain, cut_name=INPUT, scope=scope, start=start, alphas=WEIGHTS)
    run = TrainingRun((), 0.0, 0, time.monotonic() - started, diverged=False)
    return Trial(replace(plain, start="re-estimated"), model, alpha, score, run)


def _estimate_(model: nn.Module, features: Features) -> None:
    """Replace running statistics by the cumulative average over the un-augmented repair inputs."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and has_statistics(module)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch: a cumulative moving average
        layer.train()
    device = next(model.parameters()).device
    with torch.no_grad():
        for inputs in islice(features.plain(BATCH_SIZE, device), MAX_INPUTS // BATCH_SIZE):
            model(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
