"""Arenas for repairs of networks that carry their own answer: which neuron is damaged, and what it did before."""

import math
import time

import numpy as np
import torch
from torch import nn

from archrepair_core.blocks import find_blocks
from archrepair_core.data.augment import AUGMENTATIONS
from archrepair_core.data.images import ImageRows, LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.evaluate import predict
from archrepair_core.features import DiskBudget
from archrepair_core.prefix_cache import PrefixCache
from archrepair_core.search.trials import Arena
from archrepair_core.spec import Preprocessing, Repair

NUM_CLASSES = 4
EDGE = 8
PREPROCESSING = Preprocessing(color="grey", scale="0-1")
DAMAGED_NEURON = 2


def quadrants(role: str, count: int, *, seed: int, noise: float = 20.0) -> LabelledImages:
    """Grey images whose class says which quadrant is bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % NUM_CLASSES
    pixels = rng.normal(60, noise, (count, EDGE, EDGE, 1))
    for row, label in enumerate(labels):
        top, left = (label // 2) * 4, (label % 2) * 4
        pixels[row, top : top + 4, left : left + 4] += 90
    return as_split(role, pixels.round().clip(0, 255).astype(np.uint8), labels)


def as_split(role: str, pixels: np.ndarray, labels: np.ndarray) -> LabelledImages:
    digests = np.array([f"{role}{row}"[:16].encode() for row in range(len(labels))], dtype="S16")
    return LabelledImages(role, ImageRows(pixels, np.arange(len(labels))), labels, "", digests, "test")


def quadrant_net() -> nn.Sequential:
    """Four hidden neurons, each the mean of its quadrant, and a head that names the brightest: right on all of them."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(EDGE * EDGE, NUM_CLASSES), nn.ReLU(), nn.Linear(4, NUM_CLASSES))
    with torch.no_grad():
        for label in range(NUM_CLASSES):
            mask = torch.zeros(EDGE, EDGE)
            mask[(label // 2) * 4 : (label // 2) * 4 + 4, (label % 2) * 4 : (label % 2) * 4 + 4] = 1 / 16
            net[1].weight[label] = mask.flatten()
        net[1].bias.zero_()
        net[3].weight.copy_(8 * torch.eye(4))
        net[3].bias.zero_()
    return net.eval()


def damaged_net() -> nn.Sequential:
    """The same with one hidden neuron turned off: everything of its class fails."""
    net = quadrant_net()
    with torch.no_grad():
        net[1].weight[DAMAGED_NEURON] *= 0.35
    return net


def arena_of(model: nn.Module, tmp_path, *, limits: dict | None = None, told=None, **splits: LabelledImages) -> Arena:
    """Everything about `model` and its data that a repair method asks for; views are none."""
    splits.setdefault("repair", quadrants("repair", 60, seed=1))
    splits.setdefault("validation", quadrants("validation", 80, seed=2))
    cache = PrefixCache(
        model=model,
        splits=splits,
        original_logits={
            role: predict(model, part, PREPROCESSING, batch_size=64, device="cpu") for role, part in splits.items()
        },
        preprocessing=PREPROCESSING,
        views=dict.fromkeys(("repair", "replay"), AUGMENTATIONS["none"]),
        work_dir=tmp_path,
        device=torch.device("cpu"),
        budget=DiskBudget(math.inf),
    )
    inputs = to_tensor(splits["repair"].images[:4], PREPROCESSING)
    blocks = {block.name: block for block in find_blocks(model, inputs)}
    asked = Repair.model_validate(limits or {})

    def on_progress(message: str, **_details: object) -> None:
        if told is not None:
            told.append(message)

    return Arena(model, {"original": cache}, blocks, asked, math.inf, 1.0, 0, on_progress)


def accuracy(model: nn.Module, images: LabelledImages) -> float:
    answers = predict(model, images, PREPROCESSING, batch_size=64, device="cpu").argmax(1)
    return float((answers == torch.as_tensor(images.labels)).float().mean())


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds
