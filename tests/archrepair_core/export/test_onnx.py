import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from archrepair_core.errors import EngineError
from archrepair_core.export import export_model
from archrepair_core.export import onnx as onnx_format
from archrepair_core.ingest.outputs import tensors_in


def write(subject, directory):
    (export,) = export_model(subject, directory, "out", formats=["onnx"], required="onnx")
    return export, directory / "out.onnx"


def run(path, batch):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch.numpy()}), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("tensor", ["output"]),
        ("tuple", ["output_0", "output_1_0"]),
        ("dict", ["logits", "features"]),
        ("named", ["logits", "features"]),
    ],
)
def test_every_output_has_a_name_and_any_batch_size_runs(make_subject, answer, names, tmp_path):
    subject = make_subject(answer)
    export, path = write(subject, tmp_path)
    assert export.written.agreement.batch_sizes == (1, 3)
    many = torch.randn(7, 3, 6, 6)
    answers = run(path, many)
    assert list(answers) == names
    for found, expected in zip(answers.values(), tensors_in(subject.module(many)).values(), strict=True):
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_the_free_dimension_is_called_batch(make_subject, tmp_path):
    _, path = write(make_subject(), tmp_path)
    graph = onnx.load(path).graph
    shapes = [value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)]
    assert shapes == ["batch", "batch"]
    assert [value.name for value in graph.input] == ["image"]


def test_untouched_weights_are_the_originals_and_no_path_of_ours_is_in_the_file(make_subject, tmp_path):
    export, path = write(make_subject(), tmp_path)
    assert "head.weight" not in export.written.changes.unchanged
    assert {"conv.weight", "bn.running_mean", "again.bias"} <= set(export.written.changes.unchanged)
    assert b"stack_trace" not in path.read_bytes()


def test_half_precision_runs(make_subject, tmp_path):
    export, path = write(make_subject(dtype=torch.float16), tmp_path)
    assert run(path, torch.randn(2, 3, 6, 6).half())["output"].dtype == "float16"
    assert export.written.agreement.tolerance == 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_precision_the_runtime_lacks_is_refused_with_its_words(make_subject, dtype, tmp_path):
    with pytest.raises(EngineError, match="does not become ONNX") as caught:
        write(make_subject(dtype=dtype), tmp_path)
    assert caught.value.code == "platform.export_failed"


class Stamped(nn.Module):
    def forward(self, x):
        mask = x.new_zeros([2, 4])
        mask[:1, :2].copy_(torch.tensor(3.0))
        return x + mask[:1]


def test_a_copy_that_broadcasts_is_written_as_one(make_subject, tmp_path):
    subject = make_subject()
    subject.module._modules["drop"] = Stamped()
    export, _ = write(subject, tmp_path)
    assert export.written.agreement.max_relative_diff < 1e-5


def test_weights_beyond_one_file_are_refused_before_any_work(make_subject, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "MAX_WEIGHT_BYTES", 100)
    with pytest.raises(EngineError, match="one ONNX file holds 100"):
        write(make_subject(), tmp_path)


@pytest.mark.slow
def test_the_engine_starts_without_the_onnx_libraries():
    late = "{'onnx', 'onnxruntime', 'onnxscript'}"
    code = f"import sys, archrepair_core.repair; sys.exit(bool({late} & set(sys.modules)))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
