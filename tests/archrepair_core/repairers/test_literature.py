"""Every method of the literature from files to files, through the same gates, limits and report as any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from archrepair_core.demo.digits import PARTS
from archrepair_core.repair import repair_model
from archrepair_core.repairers import METHODS
from archrepair_core.request import RepairRequest
from archrepair_core.spec import LEVELS, RepairSpec
from tests.archrepair_core.report.reports import assert_follows_schema

SETS = ("repair", "validation", "test", "replay")
# What each may change: nothing but what its paper changes. None is everything.
CHANGED = {
    "arachne": None, "apricot": None, "mode": None, "sensei": None, "fewshot_mix": None, "deeprepair": None,
    "certify": {"head.weight", "head.bias"},
}  # fmt: skip


@pytest.fixture(scope="module")
def known(digits, tmp_path_factory) -> Path:
    """The sharp digits that the demo's network learned, as the demo draws them."""
    order = np.random.default_rng(0).permutation(len(load_digits().target))[: PARTS["train"]]
    images = (load_digits().images[order] * 255 / 16).round().astype(np.uint8)
    path = tmp_path_factory.mktemp("known") / "replay.npz"
    np.savez(path, images=images, labels=load_digits().target[order])
    return path


def run(digits, known, tmp_path, stopped=lambda told: False, **repair):
    files = {f"upload:{name}": digits / f"{name}.npz" for name in SETS} | {"upload:replay": known}
    asked = {"datasets": {name: f"upload:{name}" for name in SETS}, "gates": ["test.accuracy > before"]}
    spec = RepairSpec.model_validate(asked | {"repair": {"budget_seconds": 40, **repair}})
    for name in ("work", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    told = []
    request = RepairRequest(digits / "model.pt", files, spec, tmp_path / "work", tmp_path / "out")
    outcome = repair_model(request, told.append, stopped=lambda: stopped(told))
    assert_follows_schema(tmp_path / "out")
    return outcome, json.loads((tmp_path / "out" / "report.json").read_text())


def test_every_method_has_levels():
    assert METHODS.keys() == LEVELS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", CHANGED)
def test_a_method_of_the_literature_repairs_or_leaves_the_original(digits, known, tmp_path, method):
    outcome, report = run(digits, known, tmp_path, method=method, epochs=2)
    assert report["spec"]["repair"]["method"] == method
    assert report["trials"]
    accuracy = report["test"]["accuracy"]
    better = outcome.verdict != "fail" and accuracy["after"] > accuracy["before"]
    assert outcome.result["outcome"] == ("repaired" if better else "no_improvement")
    assert outcome.verdict != "pass" or accuracy["after"] > accuracy["before"]
    files = {artifact.kind: artifact.name for artifact in outcome.artifacts}
    if report["chosen"]:
        delivered = torch.jit.load(str(tmp_path / "out" / (files.get("model") or files["candidate"]))).state_dict()
        original = torch.jit.load(str(digits / "model.pt")).state_dict()
        assert delivered.keys() == original.keys()
        changed = {name for name in original if not torch.equal(original[name], delivered[name])}
        assert changed
        assert changed <= (CHANGED[method] or original.keys())
    assert ("certificate" in files) == (method == "certify" and report["chosen"] is not None)


@pytest.mark.slow
@pytest.mark.parametrize("method", CHANGED)
def test_a_method_of_the_literature_ends_soon_after_it_is_stopped(digits, known, tmp_path, method):
    def once_repairing(told):
        return sum(progress.phase == "repairing" for progress in told) > 2

    outcome, report = run(digits, known, tmp_path, stopped=once_repairing, method=method, budget_seconds=3600)
    assert report["completion"] == "partial"
    assert outcome.result["seconds"]["repairing"] < 300
