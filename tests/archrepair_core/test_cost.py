import time

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.cost import count_macs, latency_ratio, latency_shares
from archrepair_core.modes import eval_mode


class Sleep(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def test_macs_of_convolutions_and_linear_layers_match_hand_counts():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )
    macs = count_macs(net, torch.randn(5, 3, 8, 8))
    by_hand = {"0": 8 * 8 * 8 * 3 * 9, "1": 0, "2": 8 * 4 * 4 * 2 * 9, "3": 0, "4": 128 * 10}
    assert macs == {"": sum(by_hand.values()), **by_hand}


def test_attention_is_counted_although_inference_would_take_fused_kernels():
    tokens, width, hidden = 6, 8, 16
    net = Attention()
    net.requires_grad_(False)
    projections = 4 * tokens * width * width
    products = 2 * tokens * tokens * width
    mlp = 2 * tokens * width * hidden
    macs = count_macs(net, torch.randn(2, tokens, width))
    assert macs["encoder"] == projections + products + mlp
    assert macs["encoder.self_attn"] == projections + products
    assert macs[""] == macs["encoder"] + width * 3
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_and_timing_leave_modes_statistics_and_input_alone():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    net[2].eval()
    inputs = torch.randn(2, 3, 8, 8)
    before, state = inputs.clone(), {key: value.clone() for key, value in net.state_dict().items()}
    count_macs(net, inputs)
    latency_shares(net, inputs, ["1"], repeats=1)
    latency_ratio(net, net, inputs, repeats=1)
    assert [module.training for module in net.modules()] == [True, True, True, False, True]
    assert torch.equal(inputs, before)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_eval_mode_gives_the_flags_back_after_an_error():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1).eval())

    def fail_in_eval_mode():
        with eval_mode(net):
            assert not any(module.training for module in net.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_eval_mode()
    assert [module.training for module in net.modules()] == [True, True, False]


def test_latency_ratio_says_how_much_slower_the_second_model_is():
    ratio = latency_ratio(Sleep(0.01), Sleep(0.03), torch.zeros(1), repeats=3)
    assert 2 < ratio < 4


def test_latency_shares_follow_the_time_spent_in_each_module():
    net = nn.Sequential(Sleep(0.01), nn.Sequential(Sleep(0.02), Sleep(0.01)))
    shares = latency_shares(net, torch.zeros(1), ["0", "1", "1.0"])
    assert shares["0"] == pytest.approx(0.25, abs=0.1)
    assert shares["1"] == pytest.approx(0.75, abs=0.1)
    assert shares["1.0"] == pytest.approx(0.5, abs=0.1)
