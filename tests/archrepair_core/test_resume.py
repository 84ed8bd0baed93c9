"""Killed at any moment, a job ends as it would have: same model, and nothing trained twice."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import SupportsFloat

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.checkpoint import DECISIONS, open_checkpoints, save_state
from archrepair_core.demo.digits import make_case
from archrepair_core.features import Features
from archrepair_core.scope import NETWORK
from archrepair_core.training import TrainingPlan, train
from tests.archrepair_core.given_rows import GivenRows

TRAINING = """
import sys, os, signal
from pathlib import Path
import torch
sys.path.insert(0, str(Path({here!r}).parent))
from test_resume import trained
trained(Path(sys.argv[1]), kill_at=int(sys.argv[2]))
"""


def make_net() -> nn.Module:
    """With all that a checkpoint must hold: dropout draws, batch-norm counts, an alpha of Adam's."""
    torch.manual_seed(1)
    branch = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
    net = nn.Sequential()
    net.add_module("branch", branch)
    net.add_module("head", nn.Linear(8, 3))
    return net.eval()


def trained(directory: Path, *, kill_at: int = -1) -> tuple[dict[str, torch.Tensor], int]:
    """The state after training with a checkpoint at every step, and the steps that were done for it here."""
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(2, 120, 6)).astype(np.float32))
    features = Features(
        (GivenRows(inputs),),
        torch.zeros(120, 3),
        torch.from_numpy(rng.integers(0, 3, 120)),
    )
    net, steps = make_net(), 0

    def on_step(step: int, _total: int, _loss: SupportsFloat) -> None:
        nonlocal steps
        steps += 1
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = open_checkpoints(directory / "checkpoints", every_seconds=0.0)
    plan = TrainingPlan(
        epochs=10,
        deadline=float("inf"),
        seed=0,
        checkpoints=checkpoints,
        learning_rate=0.1,
        score=lambda: (-float(net.head.weight.detach().norm()), 0.0),
    )
    train(net, net, features, scope=NETWORK, plan=plan, on_step=on_step)
    return dict(net.state_dict()), steps


@pytest.mark.slow
def test_a_training_killed_at_a_random_step_ends_in_the_same_bits(tmp_path):
    whole, twice = tmp_path / "whole", tmp_path / "twice"
    whole.mkdir()
    twice.mkdir()
    expected, all_steps = trained(whole)
    assert all_steps == 20
    script = TRAINING.format(here=__file__)
    killed_at = int(np.random.default_rng().integers(2, 20))
    done = subprocess.run([sys.executable, "-c", script, str(twice), str(killed_at)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    found, steps = trained(twice)
    assert steps == all_steps - killed_at + 1, "the step that was killed before its checkpoint is done again"
    assert all(torch.equal(found[name], expected[name]) for name in expected), killed_at
    again, steps = trained(twice)
    assert steps == 0, "a finished training is not repeated"
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_seconds_and_decisions_of_the_attempt_before_count(tmp_path):
    first = open_checkpoints(tmp_path / "kept")
    assert [first.decide(value) for value in (1.0, 0.0, 0.25)] == [1.0, 0.0, 0.25]
    first.at("a").write({"x": torch.ones(2)}, {})
    with (tmp_path / "kept" / DECISIONS).open("ab") as file:
        file.write(b"7")  # killed while writing
    second = open_checkpoints(tmp_path / "kept")
    assert [second.decide(9.0) for _ in range(4)] == [1.0, 0.0, 0.25, 9.0]
    assert first.spent_before == 0.0 < second.spent_before < 60
    assert open_checkpoints(tmp_path / "kept").decide(5.0) == 1.0


def test_what_code_of_another_version_left_is_not_found(tmp_path, monkeypatch):
    older = open_checkpoints(tmp_path / "kept")
    older.decide(1.0)
    older.at("a").write({"x": torch.ones(2)}, {})
    monkeypatch.setattr("archrepair_core.checkpoint.SUFFIX", ".0.safetensors")
    monkeypatch.setattr("archrepair_core.checkpoint.DECISIONS", "decisions.0")
    newer = open_checkpoints(tmp_path / "kept")
    assert (newer.at("a").read(), newer.decide(2.0), newer.spent_before) == (None, 2.0, 0.0)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 64])
def test_a_damaged_checkpoint_is_no_checkpoint(damage, tmp_path):
    checkpoint = open_checkpoints(tmp_path / "kept").at("a")
    checkpoint.write({"x": torch.ones(2)}, {"step": 3})
    saved = checkpoint.read()
    assert saved is not None
    assert saved.meta["step"] == 3
    checkpoint.path.write_bytes(damage)
    assert checkpoint.read() is None
    assert open_checkpoints(tmp_path / "kept").spent_before == 0.0


def test_a_write_that_fails_leaves_the_state_before(tmp_path):
    checkpoint = open_checkpoints(tmp_path / "kept").at("a")
    checkpoint.write({"x": torch.ones(2)}, {"step": 3})
    with pytest.raises(TypeError):
        save_state(checkpoint.path, {"x": torch.zeros(2)}, {"step": object()})
    saved = checkpoint.read()
    assert saved is not None
    assert saved.meta["step"] == 3


JOB = """
import os, signal, sys
from functools import partial
from pathlib import Path
from archrepair_core import pace, progress, repair
from archrepair_core.checkpoint import open_checkpoints
from archrepair_core.spec import RepairSpec
data, folder, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
assert hasattr(pace, "open_checkpoints") and hasattr(progress, "MIN_SECONDS_BETWEEN_MESSAGES")
pace.open_checkpoints = partial(open_checkpoints, every_seconds=0.0)
progress.MIN_SECONDS_BETWEEN_MESSAGES = 0.0
(folder / "work").mkdir(parents=True, exist_ok=True)
(folder / "out").mkdir(exist_ok=True)
names, told = ("repair", "validation", "test"), 0
spec = {
    "datasets": {name: f"upload:{name}" for name in names},
    "localization": {"include": ["blocks.1"]},
    # Limits on time and on latency, which are measured, would make two jobs differ.
    "repair": {
        "method": "block_search", "epochs": 3, "budget_seconds": 36000, "max_params_ratio": 10, "max_latency_ratio": 10,
    },
    "evaluation": {"controls": "none"},
    "seed": 3,
}

def tell(progress):
    global told
    if progress.phase == "repairing":
        told += 1
        if told == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

files = {f"upload:{name}": data / f"{name}.npz" for name in names}
request = repair.RepairRequest(
    data / "model.pt", files, RepairSpec.model_validate(spec), folder / "work", folder / "out"
)
repair.repair_model(request, tell)
print(told)
"""


def run_job(data: Path, folder: Path, kill_at: int) -> int:
    """How often a job told of its progress while repairing; -1 if it was killed."""
    command = [sys.executable, "-c", JOB, str(data), str(folder), str(kill_at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return int(done.stdout) if done.returncode == 0 else -1


@pytest.mark.slow
@pytest.mark.timeout(900)  # three jobs, which leave a checkpoint at every step
def test_a_job_killed_at_a_random_step_delivers_the_same_model(tmp_path):
    make_case(tmp_path, seed=0)
    all_told = run_job(tmp_path, tmp_path / "whole", kill_at=-1)
    killed_at = int(np.random.default_rng().integers(10, all_told))
    assert run_job(tmp_path, tmp_path / "twice", kill_at=killed_at) == -1
    assert run_job(tmp_path, tmp_path / "twice", kill_at=-1) < all_told, "what was trained is not trained again"
    one, two = (load(next((tmp_path / name / "out").glob("*.pt"))).state_dict() for name in ("whole", "twice"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one), killed_at


def load(path: Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path))
