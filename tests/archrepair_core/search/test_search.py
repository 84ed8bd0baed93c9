"""One trial: where it starts, and what it is walked back to."""

import copy
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.data.augment import AUGMENTATIONS
from archrepair_core.data.images import ImageRows, LabelledImages
from archrepair_core.features import DiskBudget
from archrepair_core.prefix_cache import PrefixCache
from archrepair_core.scope import NETWORK
from archrepair_core.search import search
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import COARSE_ALPHAS, PROBE_ALPHAS, leave_time_to_walk, race, run_trial
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.selection import ALPHAS, ValidationScore
from archrepair_core.spec import Preprocessing, Repair
from archrepair_core.training import TrainingRun


def images_of(role: str, count: int) -> LabelledImages:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(count) % 4
    return LabelledImages(role, ImageRows(pixels, np.arange(count)), labels, "", np.empty(count, "S16"), "test")


def test_a_network_that_began_elsewhere_is_walked_back_to_the_original(tmp_path):
    """Nothing may be broken here, so the walk ends where it began: at the original, not at the other start."""
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 4)).eval()
    other = copy.deepcopy(original)
    other[1].running_mean += 3.0
    splits = {"repair": images_of("repair", 16), "validation": images_of("validation", 40)}
    cache = PrefixCache(
        model=original,
        splits=splits,
        original_logits={
            role: nn.functional.one_hot(torch.as_tensor(part.labels)).float() for role, part in splits.items()
        },
        preprocessing=Preprocessing(),
        views={"repair": AUGMENTATIONS["none"]},
        work_dir=tmp_path,
        device=torch.device("cpu"),
        budget=DiskBudget(math.inf),
    )
    starts = {"re-estimated": cache.starting_from(other), "original": cache}
    arena = Arena(original, starts, {}, Repair(), 0.0, 1.0, 0, lambda _message, **_details: None)
    trial = run_trial(arena, Genotype(NETWORK, start="re-estimated"), epochs=1, deadline=math.inf)
    assert trial.run.steps == 1
    assert trial.alpha == 0.0
    for name, value in trial.model.state_dict().items():
        assert torch.equal(value, original.state_dict()[name]), name


@pytest.mark.parametrize(("long", "won"), [(0.001, 34), (0.03, 400), (0.031, 400)])
def test_a_long_training_that_clearly_unlearned_gives_way_to_the_winners_own_probe(monkeypatch, long, won):
    """Scores of 200 inputs with some noise of their own: only what is beyond it counts."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, 200))
    utilities = {"a": {34: 0.031, 400: long}, "b": {34: 0.0, 400: 0.0}}

    def run(_arena, genotype, *, epochs, deadline, alphas=None):
        steps = 34 if alphas is PROBE_ALPHAS else 400
        utility = utilities[genotype.scope[0]][steps]
        score = ValidationScore(0.8, utility, 0.0, noise * (steps / 400) + utility, 0.0)
        return Trial(genotype, nn.Identity(), 1.0, score, TrainingRun((), 0.1, steps, 1.0, diverged=False))

    monkeypatch.setattr(search, "run_trial", run)
    monkeypatch.setattr(search, "affordable", lambda _arena, _genotype: True)
    monkeypatch.setattr(search, "rung_epochs_of", lambda _arena: 1.0)
    arena = Arena(nn.Identity(), {}, {}, Repair(), 0.0, 0.0, 0, lambda _message: None)
    trials = race(arena, [Genotype(("a",)), Genotype(("b",))], deadline=time.monotonic() + 60, epochs=1)
    assert (trials[0].genotype.scope, trials[0].run.steps) == (("a",), won)
    assert sorted(trial.run.steps for trial in trials) == [34, 34, 400]


@pytest.mark.parametrize(
    ("scoring_seconds", "epochs", "left", "alphas"),
    [
        (0.0, None, 6.0, ALPHAS),
        (1.0, None, 8.0, ALPHAS),  # eight α of a second each
        (3.0, None, 12.0, COARSE_ALPHAS),
        (3.0, 5, 24.0, ALPHAS),
        (900.0, None, 100.0, COARSE_ALPHAS),
    ],
)
def test_the_walk_back_is_done_within_the_budget(scoring_seconds, epochs, left, alphas):
    arena = SimpleNamespace(scoring_seconds=scoring_seconds, decide=float)
    until, walked = leave_time_to_walk(arena, 1100.0, epochs=epochs, since=1000.0)
    assert 1100.0 - until == pytest.approx(left)
    assert walked is alphas
