"""Repairs from unlabelled inputs, from files to files: what a damaged block costs is won back by statistics alone."""

import json
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from archrepair_core.errors import ArchRepairError
from archrepair_core.repair import repair_model
from archrepair_core.request import RepairRequest
from archrepair_core.spec import RepairSpec
from tests.archrepair_core.report.reports import assert_follows_schema

NUM_UNLABELLED = 60
DAMAGED = "blocks.1"


@pytest.fixture(scope="module")
def damaged(damaged_path):
    """A network with one damaged block, some inputs of its own kind without labels, and a labelled test set."""
    directory = damaged_path.parent
    images = (load_digits().images * 255 / 16).round().astype(np.uint8)
    np.savez(directory / "field.npz", images=images[:NUM_UNLABELLED])
    np.savez(directory / "sharp.npz", images=images[NUM_UNLABELLED:], labels=load_digits().target[NUM_UNLABELLED:])
    return directory


def run(model, spec, files, tmp_path):
    for name in ("work", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    asked = RepairSpec.model_validate(
        {"datasets": {name: f"upload:{name}" for name in files}, "evaluation": {"controls": "none"}, **spec}
    )
    uploads = {f"upload:{name}": path for name, path in files.items()}
    request = RepairRequest(model, uploads, asked, tmp_path / "work", tmp_path / "out")
    outcome = repair_model(request, lambda _: None)
    assert_follows_schema(tmp_path / "out")
    return outcome


@pytest.fixture
def repair(damaged, tmp_path):
    def run_method(files=("field", "sharp"), **spec):
        roles = dict(zip(("repair", "test"), (damaged / f"{name}.npz" for name in files), strict=True))
        spec = {"gates": ["test.accuracy > before"], "localization": {"include": [DAMAGED]}, **spec}
        outcome = run(damaged / "damaged.pt", spec, roles, tmp_path)
        return outcome, json.loads((tmp_path / "out" / "report.json").read_text())

    return run_method


@pytest.mark.slow
@pytest.mark.parametrize("method", ["align", "auto"])
def test_unlabelled_inputs_win_back_what_a_damaged_block_cost(repair, method):
    outcome, report = repair(repair={"method": method, "epochs": 120, "budget_seconds": 60})
    accuracy = report["test"]["accuracy"]
    assert (outcome.verdict, report["outcome"]) == ("pass", "repaired")
    assert accuracy["before"] < 0.9
    assert accuracy["after"] > accuracy["before"] + 0.5 * (1 - accuracy["before"])
    assert outcome.result["blocks_repaired"] == [DAMAGED]
    assert report["data"]["splits"]["repair"]["labelled"] is False
    score = report["chosen"]["validation"]
    assert score["divergence_after"] < 0.5 * score["divergence_before"]
    assert any("no labels" in limit for limit in report["limits"])
    assert report["spec"]["repair"]["augment"] == "none", "digits must not be mirrored"


@pytest.mark.slow
def test_batch_norm_needs_no_labels_either(repair):
    outcome, report = repair(repair={"method": "bn"})
    assert report["chosen"] is None or report["chosen"]["validation"]["divergence_after"] > 0
    assert outcome.result["outcome"] in ("repaired", "no_improvement")


@pytest.mark.slow
def test_unlabelled_inputs_of_a_healthy_network_change_nothing(digits, damaged, tmp_path):
    roles = {"repair": damaged / "field.npz", "test": damaged / "sharp.npz"}
    spec = {"repair": {"method": "align", "epochs": 30, "budget_seconds": 60}}
    outcome = run(digits / "model.pt", spec, roles, tmp_path)
    assert outcome.result["outcome"] == "no_improvement"
    assert not list((tmp_path / "out").glob("repaired.*"))


@pytest.mark.slow
def test_with_labels_align_is_chosen_on_validation(repair):
    _, report = repair(files=("sharp", "sharp"), datasets={"repair": "upload:repair"}, repair={"method": "align"})
    assert report["chosen"]["validation"]["accuracy"] > 0.9


def test_a_model_without_any_record_of_health_says_what_is_missing(damaged, tmp_path):
    net = torch.nn.Sequential(
        torch.nn.Flatten(), *(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()) for _ in range(3)),
        torch.nn.Linear(64, 10),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), str(tmp_path / "plain.pt"))
    roles = {"repair": damaged / "field.npz", "test": damaged / "sharp.npz"}
    with pytest.raises(ArchRepairError, match="no batch-norm") as caught:
        run(tmp_path / "plain.pt", {"repair": {"method": "align", "budget_seconds": 2}}, roles, tmp_path)
    assert caught.value.code == "spec.nothing_to_align_to"
    assert "model.reference" in caught.value.hint
