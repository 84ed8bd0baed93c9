import subprocess
import sys
from contextlib import nullcontext
from typing import get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from archrepair_core.data.corruptions import COMMON_KINDS
from archrepair_core.spec import (
    COMMON_CORRUPTIONS,
    LEVELS,
    RepairLevel,
    RepairMethod,
    RepairSpec,
    resolve_corruptions,
)

LEAST = {"datasets": {"repair": "upload:repair"}}
LIST_OF_FORMATS = "list[literal['torchscript','torch_export','onnx','safetensors']]"


def test_a_repair_set_is_all_a_spec_needs():
    spec = RepairSpec.model_validate(LEAST)
    assert (spec.kind, spec.seed, spec.gates, spec.repair.method, spec.outputs) == (
        "repair", 0, "auto", "auto", "auto",
    )  # fmt: skip
    assert spec.datasets.test is None


def test_an_evaluation_needs_a_test_set_alone_and_measures_corruptions_unless_told_otherwise():
    spec = RepairSpec.model_validate({"kind": "evaluate", "datasets": {"test": "upload:test"}})
    assert resolve_corruptions(spec) == list(COMMON_KINDS) == list(COMMON_CORRUPTIONS)
    assert resolve_corruptions(RepairSpec.model_validate(LEAST)) == []
    asked = {"evaluation": {"corruptions": ["fog", "snow"]}}
    assert resolve_corruptions(RepairSpec.model_validate(LEAST | asked)) == ["fog", "snow"]
    asked = {"evaluation": {"corruptions": "none"}}
    assert resolve_corruptions(RepairSpec.model_validate(spec.model_dump() | asked)) == []


def test_a_spec_survives_json():
    spec = RepairSpec.model_validate(
        {
            "kind": "localize",
            "datasets": {"repair": "upload:repair", "test": "builtin:digits", "allow_leak": True},
            "preprocessing": {"mean": [0.5], "std": [0.25], "resize": [32, 48], "color": "grey", "scale": "0-255"},
            "repair": {"budget_seconds": 30, "epochs": 3},
            "gates": ["test.accuracy > before"],
            "seed": 7,
        }
    )
    assert RepairSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        ({"datasets": {}}, ("datasets", "repair"), "a job of kind repair needs datasets.repair"),
        ({"kind": "evaluate"}, ("datasets", "test"), "a job of kind evaluate needs datasets.test"),
        ({"evaluation": {"corruptions": ["fog", "fog"]}}, ("evaluation", "corruptions"), "stands twice in fog, fog"),
        ({"evaluation": {"slices": ["hour", "hour"]}}, ("evaluation", "slices"), "stands twice in hour, hour"),
        ({"datasets": {"repair": ""}}, ("datasets", "repair"), "at least 1 character"),
        ({"sed": 3}, ("sed",), "Extra inputs"),
        ({"repair": {"metod": "bn"}}, ("repair", "metod"), "Extra inputs"),
        ({"kind": "mend"}, ("kind",), "'repair', 'localize' or 'evaluate'"),
        ({"seed": -1}, ("seed",), "greater than or equal to 0"),
        ({"seed": 2**31}, ("seed",), "less than 2147483648"),
        ({"outputs": []}, ("outputs", LIST_OF_FORMATS), "at least 1 item"),
        ({"outputs": ["pickle"]}, ("outputs", LIST_OF_FORMATS, 0), "'onnx'"),
        ({"outputs": ["onnx", "onnx"]}, ("outputs",), "stands twice in onnx, onnx"),
        ({"gates": ["test.acuracy > 0"]}, ("gates",), "'acuracy' is not one of accuracy"),
        ({"gates": ["test.accuracy > 0"] * 65}, ("gates", "list[str]"), "at most 64 items"),
        ({"preprocessing": {"mean": [0.5]}}, ("preprocessing",), "mean and std must be given together"),
        ({"preprocessing": {"mean": [0.5], "std": [1, 1]}}, ("preprocessing",), "mean and std must be given together"),
        ({"preprocessing": {"mean": [0.5], "std": [0]}}, ("preprocessing", "std", 0), "greater than 0"),
        ({"preprocessing": {"resize": [32]}}, ("preprocessing", "resize"), "at least 2 items"),
        ({"preprocessing": {"resize": [32, 0]}}, ("preprocessing", "resize", 1), "greater than 0"),
        ({"repair": {"max_latency_ratio": 0.9}}, ("repair", "max_latency_ratio"), "greater than or equal to 1"),
        (
            {"repair": {"level": "neuron"}},
            ("repair", "level"),
            "auto works on auto, block, network; neuron is for weights",
        ),
        (
            {"repair": {"method": "sensei", "level": "block"}},
            ("repair", "level"),
            "sensei works on auto, network; block",
        ),
        ({"repair": {"method": "certify", "level": "neuron"}}, ("repair", "level"), "neuron is for weights, arachne"),
        ({"repair": {"method": "mend", "level": "neuron"}}, ("repair", "method"), "'certify'"),
        ({"localization": {"top_k": 0}}, ("localization", "top_k"), "greater than or equal to 1"),
    ],
)
def test_a_wrong_spec_names_the_field_and_the_rule(change, where, said):
    with pytest.raises(ValidationError) as caught:
        RepairSpec.model_validate(LEAST | change)
    errors = {error["loc"]: error["msg"] for error in caught.value.errors()}
    assert where in errors
    assert said in errors[where]


@pytest.mark.parametrize("level", get_args(RepairLevel))
@pytest.mark.parametrize("method", get_args(RepairMethod))
def test_the_schema_says_which_levels_a_method_works_on(method, level):
    """Whoever reads the schema alone knows what is refused."""
    spec = LEAST | {"repair": {"method": method, "level": level}}
    allowed = level in LEVELS[method]
    assert Draft202012Validator(RepairSpec.model_json_schema()).is_valid(spec) == allowed
    with nullcontext() if allowed else pytest.raises(ValidationError):
        RepairSpec.model_validate(spec)


@pytest.mark.parametrize("budget", [0, -1, 7 * 24 * 3600 + 1, "fast", float("nan"), float("inf")])
def test_a_budget_is_auto_or_seconds_within_a_week(budget):
    with pytest.raises(ValidationError):
        RepairSpec.model_validate(LEAST | {"repair": {"budget_seconds": budget}})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["mean", "std"])
def test_mean_and_std_are_finite_numbers(field, value):
    with pytest.raises(ValidationError):
        RepairSpec.model_validate(LEAST | {"preprocessing": {"mean": [0.5], "std": [0.5]} | {field: [value]}})


def test_a_spec_cannot_be_changed_after_it_was_checked():
    spec = RepairSpec.model_validate(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 3


def test_the_spec_needs_neither_torch_nor_numpy():
    seen = "import sys, archrepair_core.spec; print({'torch', 'numpy', 'fastapi'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout == "set()\n"
