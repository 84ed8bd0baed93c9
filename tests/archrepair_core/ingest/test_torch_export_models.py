"""Whole networks, exported, rebuilt and held against the eager original. Run with `-m models`."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from torch import Tensor, nn

from archrepair_core.blocks import find_blocks
from archrepair_core.errors import ModelError
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.outputs import largest_relative_difference
from archrepair_core.ingest.verify import verify_decompiled
from tests.archrepair_core.ingest.exported import save_export

# name, image size, batch it is exported with, whether the batch is dynamic
PROGRAMS = [
    ("resnet18", 64, 2, True),
    ("resnet18", 64, 1, False),
    ("mobilenet_v3_small", 64, 2, False),
    ("densenet121", 64, 2, True),
    ("densenet121", 64, 1, False),
    ("vgg11", 32, 1, False),
    ("efficientnet_b0", 64, 2, False),
    ("regnet_y_400mf", 64, 2, True),
    ("convnext_tiny", 64, 1, False),
    ("shufflenet_v2_x0_5", 64, 1, False),
    ("swin_t", 64, 2, True),
    ("swin_t", 64, 1, False),
    ("vit_b_16", 224, 1, False),
    ("vit_b_16", 224, 2, True),
    ("swin_v2_t", 64, 1, False),
    ("timm/resnetv2_50", 64, 1, False),
    ("timm/deit_tiny_patch16_224", 224, 1, False),
    ("timm/vit_tiny_patch16_224", 224, 2, True),
    ("timm/vit_tiny_patch16_224", 224, 1, False),
    ("timm/mixer_s32_224", 224, 1, False),
    ("timm/repvgg_a0", 64, 2, True),
]
# Stochastic depth leaves nothing in a program exported in eval mode: nothing can bring it back.
LOSES_DROP_PATH = {"convnext_tiny", "efficientnet_b0", "swin_t", "swin_v2_t"}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, last = name.rpartition("/")
    model: nn.Module = timm.create_model(last) if library else getattr(torchvision.models, last)(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def blocks_of(model: nn.Module, inputs: Tensor) -> Any:
    try:
        return [(block.name, block.level) for block in find_blocks(model, inputs)]
    except ModelError as error:
        return error.code


@pytest.mark.models
@pytest.mark.parametrize(("name", "size", "batch", "dynamic"), PROGRAMS)
def test_an_exported_network_comes_back_whole(name, size, batch, dynamic, tmp_path: Path):
    original = made(name)
    path = save_export(original, tmp_path / "model.pt2", torch.randn(batch, 3, size, size), dynamic=dynamic)
    ingested = ingest_model(path, tmp_path)
    inputs = torch.randn(3, 3, size, size)
    assert verify_decompiled(ingested.reference, ingested.model, inputs).untrained == ()
    with torch.no_grad():
        expected = original(inputs)
        assert largest_relative_difference(ingested.model(inputs), expected) <= 1e-5
    assert ingested.model.state_dict().keys() == original.state_dict().keys()
    assert blocks_of(ingested.model, inputs) == blocks_of(original, inputs)
    script = torch.jit.script(ingested.model)
    again = ingest_model(save_export(ingested.model, tmp_path / "again.pt2", inputs), tmp_path).model
    with torch.no_grad():
        assert largest_relative_difference(script(inputs), expected) <= 1e-5
        assert largest_relative_difference(again(inputs), expected) <= 1e-5
    if name not in LOSES_DROP_PATH:
        answers = []
        for model in (original, ingested.model):
            torch.manual_seed(5)
            answers.append(model.train()(inputs))
        assert largest_relative_difference(answers[1], answers[0]) <= 1e-5
        # Batch-norms of timm's own classes do not count their batches: an eval program does not show it.
        counted = {key: tensor for key, tensor in original.state_dict().items() if tensor.is_floating_point()}
        for key, tensor in counted.items():
            assert largest_relative_difference(ingested.model.state_dict()[key], tensor) <= 1e-5
