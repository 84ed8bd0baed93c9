"""Whole networks through every format: rebuilt from scripted and from traced archives."""

import warnings

import pytest
import torch
import torchvision

from archrepair_core.export import export_model
from archrepair_core.export.subject import Subject, two_batches
from archrepair_core.ingest.model import ingest_model

NETWORKS = {
    "resnet18": {},
    "mobilenet_v3_small": {},
    "densenet121": {},
    "convnext_tiny": {},
    "swin_t": {},
    "vit_b_16": {"image_size": 64},
    "efficientnet_b0": {},
}
FORMATS = ["torchscript", "torch_export", "onnx", "safetensors"]


@pytest.mark.models
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["scripted", "traced"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_written_in_every_format(name, kind, tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(3, 3, 64, 64)
    network = torchvision.models.get_model(name, weights=None, num_classes=10, **NETWORKS[name]).eval()
    heads = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    torch.nn.init.normal_(heads[-1].weight, std=0.1)  # some come with zeros, which would agree with anything
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = kind == "traced"
        compiled = torch.jit.trace(network, inputs, check_trace=False) if traced else torch.jit.script(network)
    torch.jit.save(compiled, str(tmp_path / "model.pt"))
    ingested = ingest_model(tmp_path / "model.pt", tmp_path)
    model = ingested.model.eval()
    subject = Subject(model, ingested.reference, two_batches(inputs, model))
    exports = export_model(subject, tmp_path, "out", formats=FORMATS, required="torchscript")
    assert [export.file for export in exports] == ["out.pt", "out.pt2", "out.onnx", "out.safetensors"], exports
    for export in exports:
        print(name, kind, export.format, export.method, export.written.agreement.max_relative_diff, export.note)
        assert export.written.agreement.batch_sizes == (1, 3)
        if export.format != "onnx":
            changes = export.written.changes
            assert (changes.changed, changes.added, changes.removed) == ((), (), ())
