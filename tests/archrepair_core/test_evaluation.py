"""Evaluations of nets that carry their own answer: what they say of an image is its first pixel."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.errors import DatasetError, ModelError
from archrepair_core.events import finite
from archrepair_core.gates import evaluate_gates
from archrepair_core.repair import repair_model
from archrepair_core.request import RepairRequest
from archrepair_core.spec import RepairSpec
from archrepair_core.statistics import wilson_interval
from tests.archrepair_core.report.reports import assert_follows_schema

CLASSES = 4
HOURS = np.array(["dawn", "day", "night"])


class FirstPixel(nn.Module):
    """Answers the class that stands, times 40, in the first pixel; `weight` makes it wrong about the last class."""

    def __init__(self, *, knows_all: bool):
        super().__init__()
        last = CLASSES - 1 if knows_all else 0
        self.weight = nn.Parameter(torch.tensor([0.0, 40.0, 80.0, 120.0 if last else 1000.0]))

    def forward(self, x):
        return -((x[:, 0, :1, 0] * 255 - self.weight) ** 2)


def images(count, *, right, columns=True):
    """Images whose first pixel is their label, but for those that are not `right`; by turns at dawn, day and night."""
    labels = np.arange(count) % CLASSES
    pixels = np.full((count, 6, 6, 1), 77, np.uint8)
    pixels[:, 0, 0, 0] = 40 * np.where(right, labels, (labels + 1) % CLASSES)
    pixels[:, 5, 5, 0], pixels[:, 5, 4, 0] = np.arange(count) % 256, np.arange(count) // 256
    hour = np.arange(count) // CLASSES % 3
    return {"images": pixels, "labels": labels} | ({"hour": HOURS[hour], "row": np.arange(count)} if columns else {})


@pytest.fixture
def run(tmp_path):
    for name, knows_all in (("model", True), ("poor", False)):
        torch.jit.script(FirstPixel(knows_all=knows_all)).save(str(tmp_path / f"{name}.pt"))
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()

    def run_spec(test, *, model="model", reference=None, regression=None, **spec):
        files = {"upload:poor": tmp_path / "poor.pt", "upload:model": tmp_path / "model.pt"}
        asked = {"kind": "evaluate", "datasets": {"test": "upload:test"}, "evaluation": {"corruptions": "none"}} | spec
        for role, arrays in (("test", test), ("regression", regression)):
            if arrays is not None:
                files[f"upload:{role}"] = tmp_path / f"{role}.npz"
                np.savez(files[f"upload:{role}"], **arrays)
                asked["datasets"] = asked["datasets"] | {role: f"upload:{role}"}
        asked["model"] = {"reference": f"upload:{reference}" if reference else None}
        request = RepairRequest(
            tmp_path / f"{model}.pt", files, RepairSpec.model_validate(asked), tmp_path / "work", tmp_path / "out"
        )
        told, inspected = [], []
        outcome = repair_model(request, told.append, on_inspected=inspected.append)
        assert_follows_schema(tmp_path / "out")
        again = evaluate_gates([gate["expression"] for gate in outcome.result["gates"]],
                               json.loads(json.dumps(finite(outcome.result))))  # fmt: skip
        assert [gate.to_json() for gate in again] == outcome.result["gates"], "what is stored is enough for the gates"
        assert RepairSpec.model_validate(outcome.resolved_spec).model_dump(mode="json") == outcome.resolved_spec
        return outcome, told, inspected

    return run_spec


def test_one_model_is_measured_alone_and_has_nothing_to_pass(run, tmp_path):
    right = np.arange(120) % 10 != 0
    outcome, told, inspected = run(images(120, right=right), regression=images(40, right=np.arange(40) >= 0))
    result = outcome.result
    assert (result["outcome"], outcome.verdict, result["gates"], result["cost"]) == (
        "evaluated",
        "not_evaluated",
        [],
        {},
    )
    assert result["test"]["accuracy"] == {
        "before": None, "after": 0.9, "after_ci95": wilson_interval(108, 120), "change": None, "change_ci95": None,
    }  # fmt: skip
    assert (result["test"]["right"], result["test"]["wrong"]) == (108, 12)
    assert result["regression"]["accuracy"]["after"] == 1.0
    assert {row["label"]: row["n"] for row in result["test"]["per_class"]} == dict.fromkeys(range(CLASSES), 30)
    assert sum(row["count"] for row in result["test"]["confusions"]) == 12
    assert "corruptions" not in result
    assert {artifact.kind for artifact in outcome.artifacts} == {
        "report", "report_html", "report_md", "report_junit", "predictions"
    }  # fmt: skip
    assert [step.phase for step in told] == ["ingesting", "baseline", "verifying", "packaging"]
    assert inspected[0].input_shape == (1, 6, 6)
    assert inspected[0].blocks_unknown.code == "model.no_repairable_block", "which is no reason not to measure"
    with np.load(tmp_path / "out" / "predictions.npz") as arrays:
        assert sorted(arrays) == ["regression_after", "regression_labels", "test_after", "test_labels"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Evaluation report" in page
    assert not [word for word in ("What was wrong", "What was changed", "Gates</h2>", ">before<") if word in page]


def test_with_a_reference_everything_is_a_change_from_it_and_default_gates_apply(run):
    outcome, *_ = run(images(400, right=np.arange(400) % 40 != 0), reference="poor")
    test = outcome.result["test"]
    assert test["accuracy"]["before"] == pytest.approx(test["accuracy"]["after"] - test["fixed"] / 400)
    assert (test["broken"], test["still_wrong"] > 0) == (0, True)
    assert outcome.verdict == "pass"
    assert outcome.resolved_spec["gates"][0] == "test.accuracy > before"
    swapped, *_ = run(images(400, right=np.arange(400) >= 0), model="poor", reference="model")
    assert swapped.verdict == "fail"
    assert swapped.result["test"]["broken"] == 100
    assert "not passed: test.accuracy > before" in swapped.result["reason"]


def test_slices_are_counted_per_value_and_a_worse_one_stands_out(run):
    count = 360
    hour = HOURS[np.arange(count) // CLASSES % 3]
    rare = np.where(np.arange(count) < 5, "rare", hour)
    right = (hour != "night") | (np.arange(count) % 5 < 2)
    asked = {"corruptions": "none", "slices": ["hour"], "min_slice": 20}
    gates = ["test.worst_slice_accuracy >= 0.42", "test.worst_slice_accuracy >= 0.1", "test.worst_slice_p > 0.01"]
    outcome, *_ = run(images(count, right=right) | {"hour": rare}, evaluation=asked, gates=gates)
    (column,) = outcome.result["slices"]
    rows = {row["value"]: row for row in column["slices"]}
    assert column["not_shown"] == {"values": 1, "n": 5}
    assert set(rows) == {"day", "dawn", "night"}
    inside = rare == "night"
    assert rows["night"]["n"] == inside.sum()
    assert rows["night"]["after"] == right[inside].mean()
    assert rows["night"]["after_ci95"] == wilson_interval(int(right[inside].sum()), int(inside.sum()))
    assert rows["night"]["from_whole"] == pytest.approx(right[inside].mean() - right.mean())
    assert rows["night"]["p_below_rest"] < 1e-6
    assert rows["day"]["p_below_rest"] == 1.0
    assert rows["night"]["change"] is None
    assert [gate["state"] for gate in outcome.result["gates"]] == ["inconclusive", "pass", "not_evaluated"]


@pytest.mark.slow
def test_corruptions_are_measured_on_drawn_inputs_and_against_the_reference(run):
    test = images(200, right=np.arange(200) >= 0)
    asked = {"corruptions": ["brightness", "gaussian_noise"], "max_inputs": 80}
    gates = ["corruptions.accuracy >= before", "corruptions.mce <= 1", "corruptions.worse_p >= 0.05"]
    outcome, *_ = run(test, reference="poor", evaluation=asked, gates=gates, seed=5)
    found = outcome.result["corruptions"]
    assert (found["n"], found["clean"]["after"]) == (80, 1.0)
    assert [row["kind"] for row in found["kinds"]] == ["brightness", "gaussian_noise"]
    for row in found["kinds"]:
        assert row["mean"]["after"] == pytest.approx(np.mean(row["after"]))
        assert row["error_ratio"] == pytest.approx((5 - sum(row["after"])) / (5 - sum(row["before"])))
    assert found["mce"]["value"] == pytest.approx(np.mean([row["error_ratio"] for row in found["kinds"]]))
    assert found["mce"]["ci95"][0] <= found["mce"]["value"] <= found["mce"]["ci95"][1]
    assert outcome.result["gates"][2]["state"] == "pass"
    again, *_ = run(test, reference="poor", evaluation=asked, gates=gates, seed=5)
    assert again.result["corruptions"] | {"seconds": 0} == found | {"seconds": 0}, "seeded"


def test_an_unknown_column_is_named_with_the_columns_there_are(run):
    with pytest.raises(DatasetError) as caught:
        run(images(40, right=np.arange(40) >= 0), evaluation={"slices": ["our"]})
    assert caught.value.code == "dataset.column_unknown"
    assert "'our'" in caught.value.detail
    assert "'hour', 'labels', 'row'" in caught.value.detail


@pytest.mark.parametrize(
    ("test", "options", "error", "code"),
    [
        (lambda: {"images": images(40, right=np.arange(40) >= 0)["images"]}, {}, DatasetError, "labels_missing"),
        (lambda: images(1100, right=np.arange(1100) >= 0), {"evaluation": {"slices": ["row"]}}, DatasetError,
         "column_too_varied"),
        (lambda: images(40, right=np.arange(40) >= 0) | {"hour": np.zeros((40, 2))},
         {"evaluation": {"slices": ["hour"]}}, DatasetError, "column_type"),
        (lambda: images(40, right=np.arange(40) >= 0) | {"images": np.zeros((40, 6, 6, 1), np.float32) - 5},
         {"evaluation": {"corruptions": "common-15x5"}}, DatasetError, "not_corruptible"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_a_clear_error(run, test, options, error, code):
    with pytest.raises(error) as caught:
        run(test(), **options)
    assert caught.value.code.partition(".")[2] == code
    assert caught.value.hint


def test_a_reference_of_other_classes_is_refused(run, tmp_path):
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(36, 7))).save(str(tmp_path / "poor.pt"))
    with pytest.raises(ModelError, match=r"has 4 outputs, and model\.reference has 7"):
        run(images(40, right=np.arange(40) >= 0), reference="poor")
