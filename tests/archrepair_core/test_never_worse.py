"""Useless data: the answer is the original, never a worse model, never a crash."""

import numpy as np
import pytest
import torch

from archrepair_core.repair import repair_model
from archrepair_core.request import RepairRequest
from archrepair_core.spec import RepairSpec


def scrambled(images, labels):
    return images, np.random.default_rng(0).permutation(labels)


def ten_images(images, labels):
    return images[:10], np.arange(10) % 5


def one_class(images, labels):
    return images[labels == 3], labels[labels == 3]


@pytest.mark.parametrize("spoil", [scrambled, ten_images, one_class])
def test_useless_data_never_delivers_a_worse_model(digits, tmp_path, spoil):
    with np.load(digits / "repair.npz") as arrays:
        images, labels = spoil(arrays["images"], arrays["labels"])
    np.savez(tmp_path / "repair.npz", images=images, labels=labels)
    (tmp_path / "out").mkdir()
    spec = {
        "datasets": {"repair": "upload:repair", "test": "upload:test"},
        "repair": {"budget_seconds": 2},
        "evaluation": {"controls": "none"},
    }
    files = {"upload:repair": tmp_path / "repair.npz", "upload:test": digits / "test.npz"}
    request = RepairRequest(digits / "model.pt", files, RepairSpec.model_validate(spec), tmp_path, tmp_path / "out")
    result = repair_model(request, lambda _: None).result
    delivered = result["outcome"] == "repaired"
    assert result["test"]["accuracy"]["change"] >= 0 or not delivered
    assert delivered == bool(list((tmp_path / "out").glob("repaired.*")))


def test_a_model_that_fails_on_nothing_is_left_alone(digits, tmp_path):
    network = torch.jit.load(str(digits / "model.pt")).eval()
    with np.load(digits / "repair.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    with torch.inference_mode():
        right = network(torch.from_numpy(images)[:, None].float() / 255).argmax(1).numpy() == labels
    np.savez(tmp_path / "repair.npz", images=images[right], labels=labels[right])
    (tmp_path / "out").mkdir()
    files = {"upload:repair": tmp_path / "repair.npz"}
    spec = RepairSpec.model_validate({"datasets": {"repair": "upload:repair"}, "repair": {"budget_seconds": 2}})
    request = RepairRequest(digits / "model.pt", files, spec, tmp_path, tmp_path / "out")
    result = repair_model(request, lambda _: None).result
    assert result["outcome"] == "no_improvement"
    assert not list((tmp_path / "out").glob("repaired.*"))
