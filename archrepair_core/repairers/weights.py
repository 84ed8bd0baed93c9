"""Weights only: fine-tune some neurons, one layer, one block or the network, with the architecture as it is.

The four levels of ArchRepair's empirical study (Qi et al., TOSEM 2023): gradients of the loss on 100 failing inputs
drawn at random choose the part, which is then trained.

Deviations and choices:
- Training is the service's (training.py): on repair and replay data, distilled, averaged, walked back. The study trains
  on the original training set alone.
- Failing inputs are those of the repair set; the study takes them from the training set.
- A block is the most suspicious one (localization.method), not the one of the largest gradient.
- The study leaves open how gradients become a number per layer or neuron, and how many neurons there are: ours are the
  mean |gradient| per weight, so that size does not win, and a tenth of all neurons. A neuron is an output channel of a
  convolution or a unit of a linear layer; its incoming weights and its bias are trained, and nothing else is touched.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.features import Features, Indices
from archrepair_core.localize.influence import loss_gradients, weighted_layers
from archrepair_core.prefix_cache import INPUT
from archrepair_core.scope import NETWORK
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.lesson import Lesson, Tail, as_it_is
from archrepair_core.search.search import race, run_alone
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.training import TrainingPlan

NUM_FAILING = 100
BATCH_SIZE = 32
NEURON_SHARE = 0.1


def fine_tune(arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None) -> list[Trial]:
    """Train the network (`level="network"`), the most suspicious block, or the layer or neurons of the largest
    gradients, with the whole budget."""
    if level in ("layer", "neuron"):
        parts = blamed_layer(arena) if level == "layer" else blamed_neurons(arena)
        genotype, lesson = Genotype(tuple(parts)), neurons_only(parts) if level == "neuron" else as_it_is
        return run_alone(arena, genotype, lesson, deadline=deadline, epochs=epochs)
    scope = NETWORK if level == "network" else (suspects[0],)
    return race(arena, [Genotype(scope)], deadline=deadline, epochs=epochs)


def layers_by_blame(arena: Arena) -> list[str]:
    """The layers, that with the largest gradients on failing inputs first."""
    means = {name: float(gradient.mean()) for name, gradient in _gradients(arena).items()}
    return sorted(means, key=lambda name: -means[name])


def blamed_layer(arena: Arena) -> dict[str, Indices]:
    """The layer with the largest gradients, and all its neurons."""
    name = layers_by_blame(arena)[0]
    layer = arena.original.get_submodule(name)
    return {name: np.arange(layer.get_parameter("weight").shape[_neuron_axis(layer)])}


def blamed_neurons(arena: Arena) -> dict[str, Indices]:
    """By layer, the neurons with the largest gradients, a tenth of all."""
    by_layer = {name: _per_neuron(arena.original, name, each) for name, each in _gradients(arena).items()}
    ranked = torch.cat(list(by_layer.values())).sort(descending=True).values
    least = ranked[max(1, round(NEURON_SHARE * len(ranked))) - 1]
    chosen = {name: torch.nonzero(each >= least).flatten().cpu().numpy() for name, each in by_layer.items()}
    return {name: neurons for name, neurons in chosen.items() if len(neurons)}


def neurons_only(neurons: dict[str, Indices]) -> Lesson:
    """Everything else in the layers of these neurons stays bit for bit what it is."""

    @contextmanager
    def lesson(
        model: nn.Module, _tail: Tail, features: Features, plan: TrainingPlan
    ) -> Iterator[tuple[Features, TrainingPlan]]:
        handles = []
        for name, chosen in neurons.items():
            layer = model.get_submodule(name)
            for parameter in layer.parameters(recurse=False):
                axis = _neuron_axis(layer) if parameter.dim() > 1 else 0
                mask = torch.zeros(parameter.shape[axis], device=parameter.device)
                mask[torch.from_numpy(chosen)] = 1
                mask = mask.view(*[-1 if at == axis else 1 for at in range(parameter.dim())])
                # Late binding would give every parameter the last mask.
                handles.append(parameter.register_hook(lambda gradient, mask=mask: gradient * mask))
        try:
            # Decay would move what has no gradient.
            yield features, replace(plan, weight_decay=0.0)
        finally:
            for handle in handles:
                handle.remove()

    return lesson


def _gradients(arena: Arena) -> dict[str, Tensor]:
    """Of the loss on failing repair inputs, by layer."""
    cache = arena.starts["original"]
    features = cache.features(INPUT, "repair")
    failing = np.flatnonzero(~features.passing_N)
    drawn = np.sort(np.random.default_rng(arena.seed).permutation(failing)[:NUM_FAILING])
    batches = features.labelled(drawn, BATCH_SIZE, cache.device)
    return loss_gradients(cache.model, batches, weighted_layers(cache.model))


def _per_neuron(model: nn.Module, name: str, gradient: Tensor) -> Tensor:
    """Mean gradient of the incoming weights of every neuron."""
    axis = _neuron_axis(model.get_submodule(name))
    return gradient.movedim(axis, 0).flatten(1).mean(1)


def _neuron_axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0
