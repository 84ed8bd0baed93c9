import pytest
import torch

from archrepair_core.errors import EngineError
from archrepair_core.export import export_model

ALL = ["torchscript", "torch_export", "onnx", "safetensors"]


@pytest.mark.slow
def test_four_formats_are_four_proven_files(make_subject, tmp_path):
    exports = export_model(make_subject("dict"), tmp_path, "repaired", formats=ALL, required="torchscript")
    names = ["repaired.pt", "repaired.pt2", "repaired.onnx", "repaired.safetensors"]
    assert [export.file for export in exports] == names
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", *names}
    for export in exports:
        assert export.written.agreement.max_relative_diff <= export.written.agreement.tolerance
        assert export.summary()["changed"] == 1
        assert export.to_json()["changed"] == ("head.weight",)


@pytest.mark.slow
def test_an_extra_format_that_fails_is_reported_with_the_reason(make_subject, tmp_path):
    subject = make_subject(dtype=torch.float64)
    exports = export_model(subject, tmp_path, "repaired", formats=["torchscript", "onnx"], required="torchscript")
    assert [export.file for export in exports] == ["repaired.pt", None]
    assert exports[1].note.startswith("not written: the repaired model does not become ONNX")
    assert exports[1].summary() == {"format": "onnx", "file": None, "method": "", "note": exports[1].note}


def test_without_any_file_the_failure_is_an_error(make_subject, tmp_path):
    with pytest.raises(EngineError):
        export_model(make_subject(dtype=torch.float64), tmp_path, "repaired", formats=["onnx"], required="torchscript")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt"}


def test_a_failing_format_does_not_take_the_others_along(make_subject, tmp_path):
    subject = make_subject(dtype=torch.float64)
    exports = export_model(subject, tmp_path, "out", formats=["onnx", "safetensors"], required="torchscript")
    assert [export.file for export in exports] == [None, "out.safetensors"]
