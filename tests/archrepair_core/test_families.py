"""Blocks of known families, against what their authors call a block: eager, scripted and traced give the same."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from archrepair_core.blocks import find_blocks
from archrepair_core.cut import Cut, NoCut, cut_at
from archrepair_core.ingest.model import ingest_model

pytestmark = [
    pytest.mark.models,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
SIDE = 64


def _timm(name: str, **sized: int) -> nn.Module:
    import timm  # takes two seconds: only where a model of it is built

    return timm.create_model(name, pretrained=False, **sized)


def _torchvision(name: str, **options: object) -> nn.Module:
    return get_model(name, weights=None, **options)


Build = Callable[[], nn.Module]
# Blocks as the papers count them, the class that is one, and how many stages hold two or more of them (one that holds
# all stages counts as well). Layers for families without blocks.
TRUTH: dict[str, tuple[Build, int, str, int]] = {
    "resnet18": (functools.partial(_torchvision, "resnet18"), 8, "BasicBlock", 4),
    "resnet50": (functools.partial(_torchvision, "resnet50"), 16, "Bottleneck", 4),
    "wide_resnet50_2": (functools.partial(_torchvision, "wide_resnet50_2"), 16, "Bottleneck", 4),
    "resnext50_32x4d": (functools.partial(_torchvision, "resnext50_32x4d"), 16, "Bottleneck", 4),
    "densenet121": (functools.partial(_torchvision, "densenet121"), 58, "_DenseLayer", 5),
    "mobilenet_v2": (functools.partial(_torchvision, "mobilenet_v2"), 17, "InvertedResidual", 1),
    "mobilenet_v3_small": (functools.partial(_torchvision, "mobilenet_v3_small"), 11, "InvertedResidual", 1),
    "efficientnet_b0": (functools.partial(_torchvision, "efficientnet_b0"), 16, "MBConv", 6),
    "efficientnet_v2_s": (functools.partial(_torchvision, "efficientnet_v2_s"), 40, "MBConv FusedMBConv", 7),
    "regnet_y_400mf": (functools.partial(_torchvision, "regnet_y_400mf"), 16, "ResBottleneckBlock", 4),
    "convnext_tiny": (functools.partial(_torchvision, "convnext_tiny"), 18, "CNBlock", 5),
    "vgg11": (functools.partial(_torchvision, "vgg11"), 11, "Conv2d Linear", 2),
    "alexnet": (functools.partial(_torchvision, "alexnet"), 8, "Conv2d Linear", 2),
    "vit_b_16": (functools.partial(_torchvision, "vit_b_16", image_size=SIDE), 12, "EncoderBlock", 1),
    "swin_t": (functools.partial(_torchvision, "swin_t"), 12, "SwinTransformerBlock", 5),
    "swin_v2_t": (functools.partial(_torchvision, "swin_v2_t"), 12, "SwinTransformerBlockV2", 5),
    "shufflenet_v2_x0_5": (functools.partial(_torchvision, "shufflenet_v2_x0_5"), 16, "InvertedResidual", 3),
    "squeezenet1_1": (functools.partial(_torchvision, "squeezenet1_1"), 8, "Fire", 1),
    "mnasnet0_5": (functools.partial(_torchvision, "mnasnet0_5"), 16, "_InvertedResidual", 6),
    "googlenet": (functools.partial(_torchvision, "googlenet", init_weights=False), 9, "Inception", 0),
    "timm resnetv2_50": (functools.partial(_timm, "resnetv2_50"), 16, "PreActBottleneck", 5),
    "timm convnext_atto": (functools.partial(_timm, "convnext_atto"), 12, "ConvNeXtBlock", 5),
    "timm efficientnet_b0": (
        functools.partial(_timm, "efficientnet_b0"),
        16,
        "DepthwiseSeparableConv InvertedResidual",
        6,
    ),
    "timm mobilenetv3_small_100": (
        functools.partial(_timm, "mobilenetv3_small_100"),
        11,
        "DepthwiseSeparableConv InvertedResidual",
        5,
    ),
    "timm regnety_004": (functools.partial(_timm, "regnety_004"), 16, "Bottleneck", 3),
    "timm densenet121": (functools.partial(_timm, "densenet121"), 58, "DenseLayer", 5),
    "timm vit_tiny_patch16_224": (functools.partial(_timm, "vit_tiny_patch16_224", img_size=SIDE), 12, "Block", 1),
    "timm deit_tiny_patch16_224": (functools.partial(_timm, "deit_tiny_patch16_224", img_size=SIDE), 12, "Block", 1),
    "timm swin_tiny": (
        functools.partial(_timm, "swin_tiny_patch4_window7_224", img_size=SIDE),
        12,
        "SwinTransformerBlock",
        5,
    ),
    "timm mixer_s32_224": (functools.partial(_timm, "mixer_s32_224", img_size=SIDE), 8, "MixerBlock", 1),
    "timm repvgg_a0": (functools.partial(_timm, "repvgg_a0"), 22, "RepVggBlock", 4),
    "timm dpn68": (functools.partial(_timm, "dpn68"), 22, "DualPathBlock", 1),
    "timm nfnet_l0": (functools.partial(_timm, "nfnet_l0"), 12, "NormFreeBlock", 4),
}


# Scripted, their forward loops over the blocks in two arms of a condition: they train as a whole.
UNCUT = {("timm vit_tiny_patch16_224", "script"), ("timm deit_tiny_patch16_224", "script")}


def counted(model: nn.Module, inputs: Tensor) -> tuple[list[str], set[str], list[str]]:
    """(block names, their kinds, stage names)."""
    blocks = find_blocks(model.eval(), inputs)
    named = {level: [block.name for block in blocks if block.level == level] for level in ("block", "stage")}
    return named["block"], {block.kind for block in blocks if block.level == "block"}, named["stage"]


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TRUTH)
def test_eager_models_have_the_blocks_their_authors_name(name, inputs):
    build, num_blocks, kinds, num_stages = TRUTH[name]
    blocks, found_kinds, stages = counted(build(), inputs)
    assert (len(blocks), found_kinds, len(stages)) == (num_blocks, set(kinds.split()), num_stages)


@pytest.mark.parametrize("kind", ["script", "trace"])
@pytest.mark.parametrize("name", TRUTH)
def test_rebuilt_models_have_the_blocks_of_the_eager_one_and_can_be_cut_there(name, kind, inputs, tmp_path):
    torch.manual_seed(0)
    net = TRUTH[name][0]().eval()
    with torch.no_grad():
        compiled = torch.jit.script(net) if kind == "script" else torch.jit.trace(net, inputs, check_trace=False)
    compiled.save(tmp_path / "upload.pt")
    model = ingest_model(tmp_path / "upload.pt", tmp_path).model
    expected, found = counted(net, inputs), counted(model, inputs)
    assert found == expected
    # The first, a middle and the last block: each cut costs five forwards.
    for block in {found[0][0], found[0][len(found[0]) // 2], found[0][-1], *found[2][-1:]}:
        cut = cut_at(model, block, inputs)
        if (name, kind) in UNCUT:
            assert cut == NoCut(block, "the submodule is called under a condition")
        else:
            assert isinstance(cut, Cut), f"{block}: {cut.reason}"
