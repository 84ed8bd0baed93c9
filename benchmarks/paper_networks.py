"""The networks of the paper at their full size (Qi et al. 2023, §4.1), with a stem for images of 32 or 64 pixels."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision import models


def _resnet(make: Callable[..., models.ResNet], num_classes: int) -> nn.Module:
    network = make(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    return network


def _densenet(num_classes: int) -> nn.Module:
    network = models.densenet121(num_classes=num_classes)
    network.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.features.pool0 = nn.Identity()
    return network


# By name, made from the number of classes.
PAPER_NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "ResNet-18": partial(_resnet, models.resnet18),
    "ResNet-50": partial(_resnet, models.resnet50),
    "ResNet-101": partial(_resnet, models.resnet101),
    "DenseNet-121": _densenet,
}
