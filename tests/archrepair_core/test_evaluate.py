import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.data.images import DIGEST_DTYPE, labelled_images
from archrepair_core.errors import DatasetError, ModelError
from archrepair_core.evaluate import predict, summarize_split
from archrepair_core.gates import DEFAULT_GATES, evaluate_gate, metrics_of, parse_gate
from archrepair_core.spec import Preprocessing
from archrepair_core.statistics import mcnemar_exact, paired_difference_interval, wilson_interval

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), dtype=np.uint8)


def dataset(pixels=PIXELS):
    n = len(pixels)
    return labelled_images(pixels, np.zeros(n, int), np.zeros(n, DIGEST_DTYPE), name="repair", source="upload:repair")


def run(model, **options):
    return predict(model, dataset(), Preprocessing(), batch_size=10, device="cpu", **options)


class Returning(nn.Module):
    """A model that answers with what a function makes of its input."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 7))


def test_logits_are_those_of_the_model_in_eval_mode_whatever_the_batch_size():
    model = small_cnn()
    logits = run(model)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(logits, expected)
    assert (logits.dtype, logits.shape) == (torch.float32, (23, 7))


def test_the_models_train_and_eval_modes_are_put_back():
    model = small_cnn()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = model[1].running_mean.clone()
    run(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, before)


def test_progress_counts_samples():
    seen = []
    run(small_cnn(), on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 23), (20, 23), (23, 23)]


def test_a_subset_is_predicted_in_its_own_order():
    order = np.array([20, 3, 7])
    part = predict(small_cnn(), dataset().subset(order), Preprocessing(), batch_size=2, device="cpu")
    torch.testing.assert_close(part, run(small_cnn())[order])


@pytest.mark.parametrize("script", [False, True])
def test_images_the_model_cannot_take_say_their_shape_and_torchs_complaint_in_one_line(script):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(DatasetError) as caught:
        run(torch.jit.script(model) if script else model)
    assert caught.value.code == "dataset.shape_mismatch"
    assert "10×3×4×5" in caught.value.detail
    assert "mat1 and mat2 shapes cannot be multiplied (10x60 and 64x10)" in caught.value.detail
    assert "\n" not in caught.value.detail
    assert "resize" in caught.value.hint


class Picky(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(2) != 224:
            raise ValueError("Expected height 224")
        return x


def test_what_a_scripted_model_raises_itself_is_a_shape_mismatch():
    with pytest.raises(DatasetError, match="Expected height 224") as caught:
        run(torch.jit.script(Picky()))
    assert caught.value.code == "dataset.shape_mismatch"


def test_running_out_of_memory_is_not_blamed_on_the_images():
    def grow(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4398046511104 bytes.")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run(Returning(grow))


def test_a_shape_asserted_by_the_model_itself_is_a_shape_mismatch():
    def refuse(x):
        raise AssertionError("Wrong image height! Expected 224 but got 4!")

    with pytest.raises(DatasetError, match="Expected 224 but got 4") as caught:
        run(Returning(refuse))
    assert caught.value.code == "dataset.shape_mismatch"


def test_running_out_of_memory_is_not_the_users_data():
    def exhaust(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run(Returning(exhaust))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: (x.flatten(1), x), "returns a tuple"),
        (lambda x: {"logits": x.flatten(1)}, "returns a dict"),
        (lambda x: x, "[10, 3, 4, 5]"),
        (lambda x: x.flatten(1)[:, :1], "[10, 1]"),
        (lambda x: x.flatten(1)[:5], "[5, 60]"),
        (lambda x: x.flatten(1).argmax(1), "torch.int64"),
        (lambda x: x.flatten(1).long(), "torch.int64"),
    ],
)
def test_what_is_not_logits_is_named(answer, said):
    with pytest.raises(ModelError) as caught:
        run(Returning(answer))
    assert caught.value.code == "model.output_not_logits"
    assert said in caught.value.detail


def logits_for(predictions, num_classes=3):
    return nn.functional.one_hot(torch.tensor(predictions), num_classes).float() * 4


LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
BEFORE = logits_for([0, 0, 1, 1, 1, 1, 1, 2, 0, 0])  # right: 0, 1, 4, 5, 6
AFTER = logits_for([0, 1, 0, 0, 1, 1, 1, 1, 0, 2])  # broken: 1; fixed: 2, 3, 7, 9; still wrong: 8


def test_the_summary_agrees_with_a_hand_count():
    summary = summarize_split(BEFORE, AFTER, LABELS)
    assert (summary["fixed"], summary["broken"], summary["still_wrong"], summary["still_right"]) == (4, 1, 1, 4)
    assert summary["accuracy"] == {
        "before": 0.5, "after": 0.8, "after_ci95": wilson_interval(8, 10),
        "change": pytest.approx(0.3), "change_ci95": paired_difference_interval(4, 1, 10),
    }  # fmt: skip
    assert summary["repair_rate"] == {"value": 0.8, "ci95": wilson_interval(4, 5)}
    assert summary["broken_rate"] == {"value": 0.1, "ci95": wilson_interval(1, 10)}
    assert summary["mcnemar_p"] == mcnemar_exact(4, 1)
    assert summary["n"] == 10
    json.dumps(summary, allow_nan=False)


def test_classes_confusions_and_the_worst_class_agree_with_a_hand_count():
    summary = summarize_split(BEFORE, AFTER, LABELS)
    assert [(row["label"], row["n"], row["before"], row["after"]) for row in summary["per_class"]] == [
        (0, 4, 0.5, 0.75), (1, 4, 0.75, 1.0), (2, 2, 0.0, 0.5),
    ]  # fmt: skip
    assert [(row["fixed"], row["broken"]) for row in summary["per_class"]] == [(2, 1), (1, 0), (1, 0)]
    assert summary["confusion_change"] == [
        {"label": 0, "predicted": 1, "before": 2, "after": 1},
        {"label": 1, "predicted": 2, "before": 1, "after": 0},
        {"label": 2, "predicted": 0, "before": 2, "after": 1},
    ]


def test_a_class_that_got_worse_stands_out_even_when_accuracy_rises():
    labels = np.repeat([0, 1, 2], 40)
    before = logits_for([0] * 40 + [1] * 40 + [0] * 40)
    after = logits_for([0] * 40 + [0] * 15 + [1] * 25 + [2] * 40)
    summary = summarize_split(before, after, labels)
    assert summary["worst_class"]["label"] == 1
    assert summary["worst_class"]["p_holm"] == pytest.approx(3 * 0.5**15)
    assert summary["accuracy"]["change"] > 0.2
    metrics = {"test.worst_class_p": metrics_of(summary)["worst_class_p"]}
    assert evaluate_gate(parse_gate("test.worst_class_p >= 0.05"), metrics).state == "fail"


def test_nothing_changed_is_no_evidence_and_breaks_nothing():
    summary = summarize_split(BEFORE, BEFORE, LABELS)
    assert (summary["mcnemar_p"], summary["worst_class"]["p_holm"], summary["confusion_change"]) == (1.0, 1.0, [])
    low, high = summary["accuracy"]["change_ci95"]
    assert low < 0 < high


def test_a_perfect_original_has_no_repair_rate():
    right = logits_for(LABELS.tolist())
    summary = summarize_split(right, right, LABELS)
    assert summary["repair_rate"]["value"] is None
    assert math.isnan(metrics_of(summary)["repair_rate"].value)


def test_a_model_that_answers_nan_is_wrong_everywhere_and_the_summary_is_still_json():
    summary = summarize_split(BEFORE, torch.full_like(BEFORE, math.nan), LABELS)
    assert summary["accuracy"]["after"] == 0
    assert summary["nll"]["after"] is None
    assert summary["ece"]["after"] is None
    json.dumps(summary, allow_nan=False)


def test_calibration_agrees_with_a_hand_count():
    sure = torch.tensor([[0.8, 0.2]]).repeat(10, 1).log()
    labels = np.array([0] * 6 + [1] * 4)
    summary = summarize_split(sure, sure, labels)
    assert summary["ece"]["before"] == pytest.approx(0.8 - 0.6)
    assert summary["nll"]["before"] == pytest.approx(-(0.6 * math.log(0.8) + 0.4 * math.log(0.2)))


def test_a_model_that_ends_in_a_softmax_is_measured_like_one_that_does_not():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
    labels = np.arange(50) % 4
    summary = summarize_split(logits, logits.softmax(1), labels)
    assert summary["nll"]["after"] == pytest.approx(summary["nll"]["before"], rel=1e-5)
    assert summary["ece"]["after"] == pytest.approx(summary["ece"]["before"], rel=1e-5)


def test_metrics_are_what_the_default_gates_ask_for():
    metrics = {f"test.{name}": metric for name, metric in metrics_of(summarize_split(BEFORE, AFTER, LABELS)).items()}
    results = [evaluate_gate(parse_gate(expression), metrics) for expression in DEFAULT_GATES]
    states = [result.state for result in results]
    assert states == ["inconclusive", "fail", "inconclusive", "pass", "not_evaluated", "not_evaluated"]
    assert results[0].interval == paired_difference_interval(4, 1, 10)
    assert metrics["test.accuracy"].interval == wilson_interval(8, 10)
    assert metrics["test.mcnemar_p"].interval is None
