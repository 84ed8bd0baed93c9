"""A small net rebuilt from its archive, and the means to have it in other dtypes and with other answers."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.export.subject import Subject, two_batches
from archrepair_core.ingest.model import ingest_model


class Answer(NamedTuple):
    logits: Tensor
    features: Tensor


class Net(nn.Module):
    """3×6×6 images to 2 logits; batch-norm, dropout and a tied pair of weights on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 1)
        self.tied = nn.Conv2d(4, 4, 1)
        self.tied.weight = self.again.weight
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def features(self, image: Tensor) -> Tensor:
        return self.tied(self.again(torch.relu(self.bn(self.conv(image))))).mean([2, 3])

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.features(image)))


class NetOfTuple(Net):
    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.features(image)
        return self.head(features), [features]


class NetOfDict(Net):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.features(image)
        return {"logits": self.head(features), "features": features}


class NetOfNamedTuple(Net):
    def forward(self, image: Tensor) -> Answer:
        features = self.features(image)
        return Answer(self.head(features), features)


NETS = {"tensor": Net, "tuple": NetOfTuple, "dict": NetOfDict, "named": NetOfNamedTuple}


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make_subject(archived, inputs, tmp_path) -> Callable[..., Subject]:
    """A net of NETS, archived and rebuilt; `head.weight` has been repaired."""

    def make(answer: str = "tensor", *, dtype: torch.dtype = torch.float32, traced: bool = False) -> Subject:
        torch.manual_seed(0)
        batch = inputs.to(dtype)
        net = NETS[answer]().to(dtype).eval()
        archived(net, batch if traced else None)
        ingested = ingest_model(tmp_path / "model.pt", tmp_path)
        module = ingested.model.eval()
        with torch.no_grad():
            module.head.weight[0, 0] += 0.5
        return Subject(module, ingested.reference, two_batches(batch, module))

    return make
