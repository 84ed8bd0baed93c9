"""Controls of a repair whose guilty block is known, for the damage was put there."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from archrepair_core.repair import repair_model
from archrepair_core.report.markdown import render_markdown
from archrepair_core.request import RepairRequest
from archrepair_core.spec import RepairSpec
from tests.archrepair_core.report.reports import assert_follows_schema

DAMAGED = "blocks.1"
PARTS = {
    "repair": slice(0, 400),
    "validation": slice(400, 600),
    "test": slice(600, 1400),
    "regression": slice(1400, None),
}


@pytest.fixture
def run(damaged_path, tmp_path):
    images = (load_digits().images * 255 / 16).round().astype(np.uint8)
    files = {f"upload:{role}": tmp_path / f"{role}.npz" for role in PARTS}
    for role, rows in PARTS.items():
        np.savez(tmp_path / f"{role}.npz", images=images[rows], labels=load_digits().target[rows])

    def run_spec(*, method="weights", controls="auto", stopped=None, max_seconds=600.0, **repair):
        work, out = (Path(tempfile.mkdtemp(dir=tmp_path)) for _ in range(2))
        asked = {
            "datasets": {name.removeprefix("upload:"): name for name in files},
            "localization": {"include": [DAMAGED]},
            "repair": {"method": method, "level": "block", "epochs": 6, "augment": "none"} | repair,
            "evaluation": {"controls": controls},
            "gates": ["test.accuracy > before"],
            "seed": 1,
        }
        told = []
        request = RepairRequest(damaged_path, files, RepairSpec.model_validate(asked), work, out, max_seconds)
        outcome = repair_model(request, told.append, stopped=lambda: bool(stopped and stopped(told)))
        assert_follows_schema(out)
        report = json.loads((out / "report.json").read_text())
        return {control["name"]: control for control in report["controls"]}, outcome, told, out

    return run_spec


@pytest.mark.slow
def test_the_same_method_on_another_block_does_worse(run):
    controls, outcome, told, out = run()
    accuracy = outcome.result["test"]["accuracy"]
    assert outcome.result["blocks_repaired"] == [DAMAGED]
    assert accuracy["after"] > accuracy["before"] + 0.2
    random_block = controls["random_block"]
    assert random_block["ran"]
    assert DAMAGED not in random_block["repaired"]
    after, against = random_block["test"]["accuracy"]["after"], random_block["repair_against_it"]
    assert after < accuracy["after"] - 0.03
    alone = against["only_repair_right"] - against["only_control_right"]
    assert alone == round(800 * (accuracy["after"] - after))
    assert against["difference"] == pytest.approx(alone / 800)
    assert against["difference_ci95"][0] > 0
    assert against["mcnemar_p"] < 1e-3
    assert random_block["test"]["accuracy"]["before"] == accuracy["before"]
    assert random_block["regression"]["n"] > 200
    assert not controls["weights"]["ran"]
    assert "fine-tune itself" in controls["weights"]["reason"]

    report = json.loads((out / "report.json").read_text())
    assert json.loads(json.dumps(outcome.result["controls"])) == report["controls"]
    assert outcome.resolved_spec["evaluation"]["controls"] == ["weights", "random_block"]
    percents = [progress.percent for progress in told]
    assert percents == sorted(percents)
    assert any("control random_block" in progress.message for progress in told if progress.phase == "verifying")
    assert 'data-path="/controls/1/repair_against_it/difference"' in (out / "report.html").read_text()
    assert "### Controls, in as many seconds" in render_markdown(report)


@pytest.mark.slow
def test_the_weights_of_the_same_block_are_a_control_of_a_search(run):
    controls, outcome, _, _ = run(method="block_search", controls=["weights"], epochs=2, budget_seconds=60)
    assert list(controls) == ["weights"]
    weights, accuracy = controls["weights"], outcome.result["test"]["accuracy"]
    assert weights["repaired"] == outcome.result["blocks_repaired"] == [DAMAGED]
    assert weights["test"]["accuracy"]["after"] > accuracy["before"]
    assert weights["allowed_seconds"] == pytest.approx(outcome.result["seconds"]["repairing"], abs=3)


@pytest.mark.slow
def test_of_a_layer_that_was_searched_the_controls_are_its_weights_and_a_layer_of_another_block(run):
    roomy = dict.fromkeys(("max_latency_ratio", "max_params_ratio", "max_macs_ratio"), 10)
    asked = {"method": "archrepair", "level": "layer", "epochs": 12, "budget_seconds": 600}
    controls, outcome, _, out = run(controls=["weights", "random_block"], **asked, **roomy)
    (layer,) = outcome.result["blocks_repaired"]
    assert layer.startswith(f"{DAMAGED}.")
    assert controls["weights"]["repaired"] == [layer]
    assert controls["random_block"]["ran"]
    assert not any(name.startswith(DAMAGED) for name in controls["random_block"]["repaired"])
    (cell,) = json.loads((out / "report.json").read_text())["cells"]
    assert cell["block"] == layer
    assert cell["params"]["after"] > cell["params"]["before"] > 0


@pytest.mark.slow
def test_without_controls_the_report_has_none(run):
    controls, outcome, _, out = run(controls="none")
    assert controls == {}
    assert outcome.resolved_spec["evaluation"]["controls"] == "none"
    assert 'id="controls"' not in (out / "report.html").read_text()


def while_training(told):
    return any("step" in progress.message for progress in told if progress.phase == "repairing")


@pytest.mark.slow
def test_what_was_not_run_says_why(run, monkeypatch):
    controls, *_ = run(method="bn")
    assert "belong to the whole network" in controls["random_block"]["reason"]
    assert controls["weights"]["repaired"] in (["network"], [])
    stopped, *_ = run(stopped=while_training, epochs=1000, budget_seconds=600)
    assert stopped["random_block"]["reason"] == "the job was stopped"
    late, *_ = run(controls=["random_block"], max_seconds=0.0)
    assert not late["random_block"]["ran"]
    assert "the job has not" in late["random_block"]["reason"]
    monkeypatch.setattr("archrepair_core.controls.UNASKED_SECONDS", 0.0)
    unasked, *_ = run()
    assert 'ask for it by evaluation.controls ["random_block"]' in unasked["random_block"]["reason"]
