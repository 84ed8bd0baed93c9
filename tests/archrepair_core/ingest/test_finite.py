import pytest
import torch
from torch import nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.finite import refuse_non_finite


def network(**buffers: torch.Tensor) -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for name, tensor in buffers.items():
        network.register_buffer(name, tensor)
    return network


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name_and_count(value):
    model = network()
    with torch.no_grad():
        model[0].weight[1, 1:] = value
    with pytest.raises(ModelError) as caught:
        refuse_non_finite(model)
    assert caught.value.code == "model.non_finite_weights"
    assert "0.weight (2)" in caught.value.detail
    assert caught.value.hint


def test_infinities_are_allowed_in_buffers_and_nan_is_not():
    refuse_non_finite(network(mask=torch.full((2, 2), float("-inf")), steps=torch.zeros((), dtype=torch.long)))
    with pytest.raises(ModelError, match="buffer mask"):
        refuse_non_finite(network(mask=torch.tensor([0.0, float("nan")])))
