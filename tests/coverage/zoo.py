"""The models of torchvision and timm, each at the smallest image its architecture takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tests.coverage.entry import Entry

SIDE = 64
# Images the architecture insists on: MaxViT's windows, the auxiliary head of Inception.
_SIDES = {"maxvit_t": 224, "inception_v3": 299}
# Vision transformers are built for one size of image; patches must divide it.
_SIZED = {"vit_b_16": 64, "vit_b_32": 64, "vit_l_16": 64, "vit_l_32": 64, "vit_h_14": 56}
# Torchvision's families, by how a name begins.
_FAMILIES = (
    *("alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inception", "maxvit", "mnasnet", "mobilenet"),
    *("regnet", "resnet", "resnext", "shufflenet", "squeezenet", "swin", "vgg", "vit", "wide_resnet"),
)
_FAST = {"resnet18": ("traced",)}
_TIMM_SIZED = ("vit", "deit", "swin", "mixer")
_TIMM = {
    "resnet": ("resnet10t", "resnet18", "resnet26d", "resnetblur18", "seresnet18"),
    "resnetv2": ("resnetv2_18", "resnetv2_50x1_bit"),
    "resnext": ("resnext26ts", "resnext50_32x4d", "seresnext26d_32x4d"),
    "convnext": ("convnext_atto", "convnext_femto_ols", "convnextv2_atto"),
    "efficientnet": ("efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnetv2_b0", "efficientnet_lite0"),
    "mobilenetv3": ("mobilenetv3_small_050", "mobilenetv3_large_100", "tf_mobilenetv3_small_minimal_100"),
    "regnet": ("regnetx_002", "regnety_002", "regnetz_005"),
    "densenet": ("densenet121", "densenetblur121d"),
    "vgg": ("vgg11", "vgg11_bn"),
    "vit": ("vit_tiny_patch16_224", "vit_small_patch32_224", "vit_tiny_r_s16_p8_224"),
    "deit": ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"),
    "swin": ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swin_s3_tiny_224"),
    "mixer": ("mixer_s32_224", "gmixer_12_224", "resmlp_12_224"),
    "repvgg": ("repvgg_a0", "repvgg_a1"),
    "dpn": ("dpn48b", "dpn68"),
    "nfnet": ("nfnet_l0", "eca_nfnet_l0", "nf_regnet_b0", "nf_resnet26"),
}


def torchvision_entries() -> Iterator[Entry]:
    """Every classification model of torchvision."""
    for name in torchvision.models.list_models(torchvision.models):
        family = max((known for known in _FAMILIES if name.startswith(known)), key=len, default="other")
        sized = {"image_size": _SIZED[name]} if name in _SIZED else {}
        build = partial(_build_torchvision, name, **sized)
        side = _SIZED.get(name, _SIDES.get(name, SIDE))
        yield Entry(f"torchvision/{name}", f"torchvision {family}", build, images(side), fast=_FAST.get(name, ()))


def timm_entries() -> Iterator[Entry]:
    """At least two small models of every family of timm that customers bring."""
    for family, names in _TIMM.items():
        for name in names:
            sized = {"img_size": SIDE} if family in _TIMM_SIZED else {}
            build = partial(_build_timm, name, **sized)
            yield Entry(f"timm/{name}", f"timm {family}", build, images(SIDE))


def images(side: int, channels: int = 3) -> Callable[[int], tuple[Tensor]]:
    return lambda count: (torch.rand(count, channels, side, side),)


def _build_torchvision(name: str, **sized: Any) -> nn.Module:
    with _initialised_later():
        return torchvision.models.get_model(name, weights=None, **sized)


def _build_timm(name: str, **sized: Any) -> nn.Module:
    import timm  # takes two seconds, which the default suite spends only where it builds one

    with _initialised_later():
        return timm.create_model(name, pretrained=False, **sized)


@contextmanager
def _initialised_later() -> Iterator[None]:
    """No initial values are drawn: the check draws its own, and drawing twice is most of building a large model."""
    names = ["kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "normal_", "uniform_"]
    names.append("trunc_normal_")
    drawn = {name: getattr(nn.init, name) for name in names}
    for name in names:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in drawn.items():
            setattr(nn.init, name, function)
