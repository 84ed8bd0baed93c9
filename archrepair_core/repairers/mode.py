"""`mode`: train on inputs that look like what a class is recognised by, chosen layer by layer.

Ma et al., "MODE: Automated Neural Network Model Debugging via State Differential Analysis and Input
Selection", ESEC/FSE 2018. A class fails because it is under-fitted (known inputs of it fail, too) or over-fitted (only
new ones do). Probes on each layer find the first behind which the features get no better. There, what the probe weighs
in inputs of the class makes three maps: of those answered right, those answered wrongly, and others answered with the
class; their difference says what to look for. Of a pool, the inputs of the class that have most of it, or least where
it is over-fitted, are trained on, with as many drawn at random.

Read with an independent replication (fabriceyhc/mode_nn_debugging): the authors published no code. Deviations and
choices:
- Known inputs are `replay`, new ones the repair inputs; both are the pool.
- Layers are the blocks that were found; features are channel means, not single activations; probes are logistic
  regressions on known inputs, and one has got better when it gains a point on repair inputs.
- Looking at the pool and probing end with a third of the time: what was not reached by then, in random order, is not
  chosen, and of deeper layers nothing is known. At most 2000 known inputs teach a probe.
- All classes below the mean accuracy are repaired at once, not one after the other; of each half of its pool is chosen.
- Inputs are chosen once, and what is chosen is trained on once; the rest of the training data is left out.
- A gap of ten points between known and new inputs is over-fitting. The layer is searched from the front in both cases.
- Training is the service's (training.py): distilled, averaged, walked back.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from archrepair_core.calls import channel_axis
from archrepair_core.errors import DatasetError
from archrepair_core.features import Features, Indices
from archrepair_core.localize.influence import recorded
from archrepair_core.modes import eval_mode
from archrepair_core.prefix_cache import INPUT
from archrepair_core.processes import clock, never
from archrepair_core.scope import NETWORK
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.lesson import Tail
from archrepair_core.search.search import run_alone
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.training import TrainingPlan

OVERFITTED_GAP = 0.1
LEAST_GAIN = 0.01
CHOSEN_SHARE = 0.5
BATCH_SIZE = 128
MAX_ITERATIONS = 200
MAX_TAUGHT = 2000
# Of the time, for the pool and for the probes.
LOOKING_SHARE, PROBING_SHARE = 0.2, 0.13

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """The pool as the original sees it: channel means by layer [N, C], its answers, the labels, which are known, and
    their places among the training inputs."""

    layers: Mapping[str, Floats]
    answers_N: Indices
    labels_N: Indices
    known_N: npt.NDArray[np.bool_]
    places_N: Indices

    @property
    def right_N(self) -> npt.NDArray[np.bool_]:
        """Which inputs the original gets right."""
        return self.answers_N == self.labels_N


@dataclass(frozen=True)
class Probe:
    """What a layer tells a linear classifier: standardised features of the pool [N, C], weights [K, C] by class."""

    layer: str
    features_NC: Floats
    weights_KC: Floats
    classes_K: Indices
    accuracy: float


def select_inputs(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the network, trained on the chosen inputs and as many others."""
    if arena.is_stopped:
        return []

    @contextmanager
    def lesson(
        _model: nn.Module, _tail: Tail, features: Features, plan: TrainingPlan
    ) -> Iterator[tuple[Features, TrainingPlan]]:
        # So many epochs are to learn the same wherever they fit into the budget.
        looking, probing = (LOOKING_SHARE, PROBING_SHARE) if plan.epochs is None else (1.0, 0.0)
        now = clock()
        looked = now + looking * (plan.deadline - now)
        probed = looked + probing * (plan.deadline - now)
        yield features.subset(chosen_items(arena, looked=looked, probed=probed)), plan

    return run_alone(arena, Genotype(NETWORK), lesson, deadline=deadline, epochs=epochs)


def chosen_items(arena: Arena, *, looked: float = math.inf, probed: float = math.inf) -> Indices:
    """Places among the training inputs, in ascending order: those chosen for a class, and as many drawn at random.

    The pool is looked at until `looked`, and probes are trained until `probed`, in `clock()` seconds.
    """
    seen = look_at_pool(arena, until=looked)
    probe = select_layer(seen, over=_over(arena, probed), seed=arena.seed)
    chosen: list[Indices] = []
    for label, fault in buggy_classes(seen).items():
        pool = np.flatnonzero(seen.labels_N == label)
        scores = probe.features_NC[pool] @ differential_map(probe, seen, label)
        order = pool[np.argsort(scores if fault == "over-fitted" else -scores, kind="stable")]
        chosen.append(order[: max(1, round(CHOSEN_SHARE * len(order)))])
        arena.on_progress(f"class {label} is {fault}: {len(chosen[-1])} of {len(pool)} inputs chosen by {probe.layer}")
    count = sum(map(len, chosen))
    others = np.random.default_rng(arena.seed).permutation(len(seen.labels_N))[:count]
    return np.sort(seen.places_N[np.concatenate([*chosen, others])])


def _over(arena: Arena, until: float) -> Callable[[], bool]:
    return lambda: arena.is_stopped or bool(arena.decide(time.monotonic() > until))


def buggy_classes(seen: Seen) -> dict[int, str]:
    """Classes that new inputs fail on more than on average, and why, the worst first."""
    new, accuracies = ~seen.known_N, {}
    for label in np.unique(seen.labels_N[new]):
        accuracies[int(label)] = float(seen.right_N[new & (seen.labels_N == label)].mean())
    mean = float(seen.right_N[new].mean())
    worst = [label for label in sorted(accuracies, key=accuracies.__getitem__) if accuracies[label] < mean]
    faults = {}
    for label in worst or [min(accuracies, key=accuracies.__getitem__)]:
        known = seen.right_N[seen.known_N & (seen.labels_N == label)]
        gap = float(known.mean()) - accuracies[label] if len(known) else 0.0
        faults[label] = "over-fitted" if gap > OVERFITTED_GAP else "under-fitted"
    return faults


def select_layer(seen: Seen, *, over: Callable[[], bool] = never, seed: int = 0) -> Probe:
    """The first layer behind which a linear classifier of known inputs gets no better on new ones, or the best so far
    where the time is over before."""
    best: Probe | None = None
    taught = np.random.default_rng(seed).permutation(np.flatnonzero(seen.known_N))[:MAX_TAUGHT]
    for name in seen.layers:
        if best is not None and over():
            break
        probe = _probe(seen, name, taught)
        if best is not None and probe.accuracy < best.accuracy + LEAST_GAIN:
            break
        best = probe
    assert best is not None, "a model has a block"
    return best


def _probe(seen: Seen, layer: str, taught: Indices) -> Probe:
    new = ~seen.known_N
    features_NC = StandardScaler().fit(seen.layers[layer][taught]).transform(seen.layers[layer])
    classifier = LogisticRegression(max_iter=MAX_ITERATIONS).fit(features_NC[taught], seen.labels_N[taught])
    weights = classifier.coef_
    # Of two classes scikit-learn tells only the second apart.
    weights_KC = np.concatenate([-weights, weights]) if len(classifier.classes_) == 2 else weights
    accuracy = float(classifier.score(features_NC[new], seen.labels_N[new]))
    return Probe(layer, features_NC, weights_KC, classifier.classes_, accuracy)


def differential_map(probe: Probe, seen: Seen, label: int) -> Floats:
    """[C]: what the class is recognised by where it is answered right, less that where it is mistaken either way."""
    place = np.flatnonzero(probe.classes_K == label)
    if not len(place):
        return np.zeros(probe.features_NC.shape[1])
    weight_C = probe.weights_KC[place[0]]

    def heat_map(which_N: npt.NDArray[np.bool_]) -> Floats:
        return weight_C * probe.features_NC[which_N].mean(0) if which_N.any() else np.zeros_like(weight_C)

    of_class, answered = seen.labels_N == label, seen.answers_N == label
    return heat_map(of_class & answered) - (heat_map(of_class & ~answered) + heat_map(~of_class & answered)) / 2


def look_at_pool(arena: Arena, *, until: float = math.inf) -> Seen:
    """Run the original over the training inputs as they are, in random order until `until`, in `clock()` seconds; a
    block called twice is seen at its last call.

    At least one new input and known ones of two classes are looked at.
    """
    cache = arena.starts["original"]
    features = cache.features(INPUT, "training")
    num_new = len(cache.splits["repair"])
    known_classes = features.labels_N[num_new:].unique()
    if len(known_classes) < 2:
        raise DatasetError(
            "too_few_classes",
            f"repair.method 'mode' tells classes apart in replay, which holds class {known_classes.tolist()[0]} alone",
            hint="send training images of every class as datasets.replay",
        )
    layers = sorted((b for b in arena.blocks.values() if b.level == "block"), key=lambda block: block.depth)
    parts: dict[str, list[Tensor]] = {block.name: [] for block in layers}
    order, labels_N = np.random.default_rng(arena.seed).permutation(len(features)), features.labels_N.numpy()
    reached, over = 0, _over(arena, until)
    with torch.inference_mode(), eval_mode(cache.model), recorded(cache.model, list(parts)) as seen:
        for inputs, labels in features.labelled(order, BATCH_SIZE, cache.device):
            known = order[:reached][order[:reached] >= num_new]
            if 0 < len(known) < reached and len(np.unique(labels_N[known])) > 1 and over():
                break
            cache.model(inputs)
            for name, means in parts.items():
                means.append(_channel_means(seen[name][1]).cpu())
            reached += len(labels)
    # In order again, so that whoever has the time for all of them sees them as they stand.
    places_N, rows = np.sort(order[:reached]), np.argsort(order[:reached])
    return Seen(
        {name: torch.cat(each).double().numpy()[rows] for name, each in parts.items()},
        features.original_NK.argmax(1).numpy()[places_N],
        labels_N[places_N],
        places_N >= num_new,
        places_N,
    )


def _channel_means(output: Tensor) -> Tensor:
    """[N, C] of [N, C, H, W], [N, T, C] or [N, C]."""
    return (
        output.movedim(channel_axis(tuple(output.shape[1:])) + 1, 1).flatten(2).mean(2) if output.dim() > 2 else output
    )
