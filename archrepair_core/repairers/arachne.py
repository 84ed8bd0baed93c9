"""`arachne`: search new values for a few weights that failing inputs blame, without gradients.

Sohn, Kang & Yoo, "Arachne: Search-Based Repair of Deep Neural Networks", TOSEM 2023 (arXiv 1912.12463), in the final
version, which searches by differential evolution; read with its authors' code, coinse/arachne. Localization, in both
directions: gradient loss backwards and forward impact, each on failing inputs over one plus that on as many passing
ones; the weights on the Pareto front of the two. Search: rand/1/bin, 100 candidates drawn from a normal distribution of
their layer's weights, F in (0.5, 1), CR 0.7, within twice the layer's extremes. A candidate's fitness counts an input
that is answered right as 1 and another as 1 / (1 + loss); failing inputs count ten times. The search ends when the best
has been the same for ten generations.

Deviations:
- One of the first candidates is the weights as they are, so that the search does not end below them.
- Where a step leaves the bounds, SciPy's implementation draws a value within them anew; the authors' clips.
- Impacts are averaged after the product of its two factors, input by input, not before; see localize/influence.py.
- At most 200 passing and 200 failing inputs are asked, drawn at random: thousands of evaluations run them. Blaming ends
  with a quarter of the time, on as many of them as it has reached.
- The result is walked back towards the original as validation likes (off with `interpolate: false`).
"""

import copy
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import OptimizeResult, differential_evolution
from torch import Tensor, nn
from torch.nn import functional as F

from archrepair_core.checkpoint import Checkpoint
from archrepair_core.features import Features, Indices
from archrepair_core.localize.influence import Influence, measure_influence, weighted_layers
from archrepair_core.prefix_cache import INPUT
from archrepair_core.processes import is_over
from archrepair_core.scope import scoped_state
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.lesson import Tail
from archrepair_core.search.search import cut_before, leave_time_to_walk, walk_back_
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.training import TrainingRun

POPULATION = 100
MUTATION, RECOMBINATION = (0.5, 1.0), 0.7
FAILING_WEIGHT = 10.0
MAX_INPUTS = 200
PATIENCE, MAX_GENERATIONS = 10, 1000
BOUND_FACTOR = 2.0
# Of the time; what is not observed by then has no say in what is blamed.
BLAMING_SHARE = 0.25
OBSERVED_BATCH, SEARCHED_BATCH = 32, 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Single weights of a model: by layer, their places in its flattened weight."""

    by_layer: Mapping[str, Indices]

    def __len__(self) -> int:
        return sum(map(len, self.by_layer.values()))

    def read(self, model: nn.Module) -> Floats:
        """Their values, layer by layer."""
        parts = [_weight(model, name).flatten()[torch.from_numpy(at)] for name, at in self.by_layer.items()]
        return np.asarray(torch.cat(parts).double().cpu())

    def write_(self, model: nn.Module, values: Floats) -> None:
        """Set them, in place."""
        start = 0
        for name, at in self.by_layer.items():
            weight = _weight(model, name)
            new = torch.as_tensor(values[start : start + len(at)], dtype=weight.dtype, device=weight.device)
            # Not through a flat view: weights may lie channels last.
            weight[torch.unravel_index(torch.from_numpy(at), weight.shape)] = new
            start += len(at)


def search_weights(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the values found for the blamed weights; `epochs` are generations, if given."""
    if arena.is_stopped:
        return []
    started = time.monotonic()
    until, alphas = leave_time_to_walk(arena, deadline, epochs=epochs)
    cache = arena.starts["original"]
    model = copy.deepcopy(cache.model)
    # So many generations are to find the same wherever they fit into the budget.
    places = blamed_weights(arena, until=until if epochs else started + BLAMING_SHARE * (until - started))
    genotype = Genotype(tuple(places.by_layer))
    arena.on_progress(f"searching {len(places)} weights in {genotype.name}")
    cut_name, tail = cut_before(arena, model, genotype.scope)
    start = {name: value.clone() for name, value in scoped_state(model, genotype.scope).items()}
    features = cache.features(cut_name, "repair")
    passing, failing = drawn_sides(features, MAX_INPUTS, seed=arena.seed)
    items = np.concatenate([passing, failing])
    search = _Search(
        arena, model, tail, features, places, items,
        num_passing=len(passing), until=until, generations=epochs or MAX_GENERATIONS,
    )  # fmt: skip
    search.run()
    alpha, score = walk_back_(
        arena, model, tail, genotype, cut_name=cut_name, scope=genotype.scope, start=start, alphas=alphas
    )
    seconds = time.monotonic() - started
    run = TrainingRun(tuple(search.best_costs), 0.0, search.evaluations, seconds, diverged=False)
    return [Trial(genotype, model, alpha, score, run)]


def blamed_weights(arena: Arena, *, until: float = math.inf) -> Places:
    """The weights on the Pareto front of gradient loss and forward impact, over all layers of the network.

    At least one batch of either side is observed, whatever `until` (`time.monotonic()`) says, and as many passing
    inputs as failing ones.
    """
    cache = arena.starts["original"]
    features = cache.features(INPUT, "repair")
    passing, failing = drawn_sides(features, MAX_INPUTS, seed=arena.seed)
    layers, now, reached = weighted_layers(cache.model), time.monotonic(), 0

    def in_time() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal reached
        for inputs, labels in features.labelled(failing, OBSERVED_BATCH, cache.device):
            if reached and (arena.is_stopped or arena.decide(time.monotonic() > now + (until - now) / 2)):
                return
            reached += len(labels)
            yield inputs, labels

    of_failing = measure_influence(cache.model, in_time(), layers)
    as_many = features.labelled(passing[:reached], OBSERVED_BATCH, cache.device)
    of_passing = measure_influence(cache.model, as_many, layers)
    costs = {name: blame(of_failing[name], of_passing[name]) for name in layers}
    front = pareto_front(np.concatenate(list(costs.values())))
    starts = np.cumsum([0, *(len(cost) for cost in costs.values())])
    chosen = {
        name: front[(front >= start) & (front < start + len(costs[name]))] - start
        for name, start in zip(layers, starts, strict=False)
    }
    return Places({name: at for name, at in chosen.items() if len(at)})


def blame(failing: Influence, passing: Influence) -> Floats:
    """[W, 2]: gradient and impact of each weight on failing inputs, less of it where passing ones depend on it too."""
    pairs = ((failing.gradient, passing.gradient), (failing.impact, passing.impact))
    return np.stack([(ours / (1 + theirs)).flatten().double().cpu().numpy() for ours, theirs in pairs], axis=1)


def pareto_front(costs_W2: Floats) -> Indices:
    """Those that no other exceeds in one of the two and reaches in the other, in ascending order."""
    order = np.lexsort((-costs_W2[:, 1], -costs_W2[:, 0]))  # by the first, among equals by the second, largest first
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], costs_W2[order, 1]]))[:-1]
    return np.sort(order[costs_W2[order, 1] > best_before])


def drawn_sides(features: Features, most: int, *, seed: int) -> tuple[Indices, Indices]:
    """At most so many passing and failing inputs, each drawn at random; at least one passing for a contrast."""
    rng = np.random.default_rng(seed)
    passing, failing = (
        rng.permutation(np.flatnonzero(side))[:most] for side in (features.passing_N, ~features.passing_N)
    )
    return passing, failing


@dataclass
class _Search:
    """A search as it goes; once it is over, no candidate is run any more.

    With checkpoints, one that was interrupted goes on from the last generation it left, with draws of its own.
    """

    arena: Arena
    model: nn.Module
    tail: Tail
    features: Features
    places: Places
    items: Indices
    num_passing: int
    until: float
    generations: int
    evaluations: int = 0
    best_costs: list[float] = field(default_factory=list)
    _unchanged: int = 0

    def run(self) -> None:
        """Leave the best values found in the model; `best_costs` has one for each generation."""
        saved = self._checkpoint.read() if self._checkpoint else None
        if saved:
            self.best_costs, self._unchanged = list(saved.meta["costs"]), saved.meta["unchanged"]
            self.evaluations = saved.meta["evaluations"]
        seed = self.arena.seed
        spread, rng = list(self._spread()), np.random.default_rng([seed, len(self.best_costs)] if saved else seed)
        first = saved.tensors["population"].numpy() if saved else self._drawn(spread, rng)
        bounds = [(each.low, each.high) for each in spread]
        left = 0 if self._unchanged >= PATIENCE else max(0, self.generations - len(self.best_costs))
        found = differential_evolution(
            self._cost, bounds, strategy="rand1bin", maxiter=left, mutation=MUTATION,
            recombination=RECOMBINATION, init=np.clip(first, *np.transpose(bounds)), rng=rng,
            callback=self._after_generation, polish=False, tol=0.0, atol=0.0, updating="immediate",
        )  # fmt: skip
        was_run = bool(np.isfinite(found.fun))
        self.places.write_(self.model, found.x if was_run else first[0])
        if was_run and self.best_costs:
            self._leave(found.population)

    def _drawn(self, spread: Sequence["_Spread"], rng: np.random.Generator) -> Floats:
        """The first candidates; the first of them is the weights as they are."""
        first = np.stack([rng.normal(each.mean, each.sd, POPULATION) for each in spread], axis=1)
        first[0] = self.places.read(self.model)
        return first

    @cached_property
    def _checkpoint(self) -> Checkpoint | None:
        hasher = hashlib.sha256(repr(self.arena.seed).encode())
        for name, at in self.places.by_layer.items():
            hasher.update(name.encode() + at.tobytes())
        return self.arena.checkpoints.at(f"arachne-{hasher.hexdigest()}") if self.arena.checkpoints else None

    def _leave(self, population: Floats) -> None:
        """The best stands first in a population."""
        if self._checkpoint:
            meta = {"costs": self.best_costs, "unchanged": self._unchanged, "evaluations": self.evaluations}
            self._checkpoint.write({"population": torch.from_numpy(population)}, meta)

    def _cost(self, values: Floats) -> float:
        """What the fitness lacks of its most, from 0 to 1: SciPy minimises."""
        if is_over(self.until, self.arena.stopped):
            return np.inf
        self.evaluations += 1
        self.places.write_(self.model, values)
        correct, loss = self._answers()
        worth = torch.where(correct, torch.ones_like(loss), 1 / (1 + loss)).nan_to_num(0.0)
        weight = torch.ones_like(worth)
        weight[self.num_passing :] = FAILING_WEIGHT
        return 1 - float((weight * worth).sum() / weight.sum())

    def _answers(self) -> tuple[Tensor, Tensor]:
        """Which inputs the model answers right, and the loss of each."""
        device = next(self.model.parameters()).device
        correct, losses = [], []
        with torch.inference_mode():
            for inputs, labels in self.features.labelled(self.items, SEARCHED_BATCH, device):
                logits = self.tail(inputs).float()
                correct.append(logits.argmax(1) == labels)
                losses.append(F.cross_entropy(logits, labels, reduction="none"))
        return torch.cat(correct), torch.cat(losses)

    def _after_generation(self, intermediate_result: OptimizeResult) -> bool:
        """Whether to end."""
        cost = float(intermediate_result.fun)
        self._unchanged = self._unchanged + 1 if self.best_costs and cost >= self.best_costs[-1] else 0
        self.best_costs.append(cost)
        self.arena.on_progress(
            f"generation {len(self.best_costs)}: {100 * (1 - cost):.2f} % of the highest fitness",
            step=len(self.best_costs),
            total_steps=self.generations,
            loss=cost,
        )
        if self._checkpoint and self._checkpoint.due:
            self._leave(intermediate_result.population)
        return self._unchanged >= PATIENCE or is_over(self.until, self.arena.stopped)

    def _spread(self) -> Iterator["_Spread"]:
        """For each weight in turn."""
        for name, at in self.places.by_layer.items():
            weight = _weight(self.model, name)
            low, high = float(weight.min()), float(weight.max())
            yield from [
                _Spread(
                    mean=float(weight.mean()),
                    sd=float(weight.std(unbiased=False)),
                    low=low * BOUND_FACTOR if low < 0 else low / BOUND_FACTOR,
                    high=high * BOUND_FACTOR if high > 0 else high / BOUND_FACTOR,
                )
            ] * len(at)


@dataclass(frozen=True)
class _Spread:
    """How the weights of a layer are distributed, and what none of them may leave."""

    mean: float
    sd: float
    low: float
    high: float


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).get_parameter("weight").detach()
