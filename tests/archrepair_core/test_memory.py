"""A job on much data needs disk within its budget, and not the memory to hold it."""

import subprocess
import sys

import pytest

MEASURED = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from torchvision.models import resnet18
from archrepair_core.cut import cut_at
from archrepair_core.data.augment import AUGMENTATIONS
from archrepair_core.data.images import ImageRows, LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.features import DiskBudget
from archrepair_core.prefix_cache import INPUT, PrefixCache
from archrepair_core.spec import Preprocessing
from archrepair_core.training import TrainingPlan, train
from tests.resident_memory import resident_bytes

work, count, budget, block = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), "layer4"
pixels = np.lib.format.open_memmap(work / "pixels.npy", "w+", np.uint8, (count, 64, 64, 3))
labels = np.arange(count) % 10
splits = {
    name: LabelledImages(name, ImageRows(pixels, np.arange(count)), labels, "", np.empty(count, "S16"), "zeros")
    for name in ("repair", "replay", "validation")
}
model = resnet18(num_classes=10).eval()
cache = PrefixCache(
    model=model,
    splits=splits,
    original_logits={name: torch.zeros(count, 10) for name in splits},
    preprocessing=Preprocessing(),
    views={name: AUGMENTATIONS["flip_crop"] for name in ("repair", "replay")},
    work_dir=work,
    device=torch.device("cpu"),
    budget=DiskBudget(budget),
)
sizes = []
for cut in (INPUT, "layer3", block):
    features = cache.features(cut, "training")
    validation = cache.features(cut, "validation")
    sizes.append(cache.budget.used)
    features.batch(np.zeros(64, int), np.arange(64), cache.device)
    del features, validation
tail = cut_at(model, block, to_tensor(splits["repair"].images[:2], Preprocessing())).tail
plan = TrainingPlan(epochs=1, deadline=float("inf"), seed=0, learning_rate=1e-4)
train(model, tail, cache.features(block, "training"), scope=(block,), plan=plan)
print(max(sizes), resident_bytes("VmHWM"))
"""


@pytest.mark.slow
def test_peak_memory_stays_within_the_budget_and_a_gigabyte_and_a_half(tmp_path):
    budget = 0.1e9
    command = [sys.executable, "-c", MEASURED, str(tmp_path), "1500", str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    largest, peak = map(int, done.stdout.split())
    assert 0.3 * budget < largest <= budget
    assert peak <= budget + 1.5e9
