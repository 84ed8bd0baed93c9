"""Nets written by hand, one for each construct that the libraries' models do not have."""

import torch
from torch import Tensor, nn

from tests.coverage.entry import Entry


class TiedWeights(nn.Module):
    """The embedding is the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="tied_weights",
        family="handwritten",
        build=TiedWeights,
        inputs=lambda count: (torch.randint(11, (count, 5)),),
        fast=("scripted",),
        exceptions=(("traced", "blocks", "the trace hands the embedding's weight to the head as a second input"),),
    ),
)
