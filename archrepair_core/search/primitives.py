"""Primitives: small operations that can stand beside a block, from the block's input to its output.

A branch starts as the zero function: its last factor is a zero `scale` per output channel (zero-γ, Goyal et al. 2017;
ReZero, Bachlechner et al. 2021), so a candidate begins as the original block. Images are [N, C, H, W]; tokens [N, T, D]
and vectors [N, D] use the adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from archrepair_core.blocks import Block


@dataclass(frozen=True)
class Span:
    """What a branch has to bridge: channels in and out, the stride of an image block, the number of tokens.

    The stride is 1 for everything that is no image, and `tokens` 0 for everything but token sequences.
    """

    channels_in: int
    channels_out: int
    stride: int = 1
    tokens: int = 0

    @property
    def width(self) -> int:
        """Hidden channels of a branch: a quarter of the output, so that a branch costs a fraction of its block."""
        return max(4, self.channels_out // 4)


def _bottleneck(span: Span) -> nn.Module:
    return nn.Sequential(
        *_conv_bn_relu(span.channels_in, span.width, 1),
        *_conv_bn_relu(span.width, span.width, 3, stride=span.stride),
        nn.Conv2d(span.width, span.channels_out, 1),
    )


def _separable(span: Span, *, dilation: int = 1) -> nn.Module:
    depthwise = nn.Conv2d(
        span.channels_in, span.channels_in, 3, span.stride, dilation, dilation, groups=span.channels_in, bias=False
    )
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(span.channels_in), nn.ReLU(), nn.Conv2d(span.channels_in, span.channels_out, 1)
    )


def _depthwise(span: Span, size: int) -> nn.Module:
    """One filter per channel, then a mix of low rank: the size of the receptive field is what varies."""
    filters = nn.Conv2d(
        span.channels_in, span.channels_in, size, span.stride, size // 2, groups=span.channels_in, bias=False
    )
    return nn.Sequential(filters, nn.BatchNorm2d(span.channels_in), *_pointwise(replace(span, stride=1)))


def _pointwise(span: Span) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(span.channels_in, span.width, 1, stride=span.stride, bias=False),
        nn.Conv2d(span.width, span.channels_out, 1),
    )


def _pooled(span: Span, pool: nn.Module) -> nn.Module:
    return nn.Sequential(pool, *_pointwise(replace(span, stride=1)))


def _renormalized(span: Span) -> nn.Module:
    """What another normalisation would make of the input: per image, not by the record of all of them."""
    return nn.Sequential(nn.InstanceNorm2d(span.channels_in, affine=True), *_pointwise(span))


class SqueezeExcite(nn.Module):
    """Scales every channel of [N, C, H, W] by what a small network makes of all channels' means.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.squeeze = nn.Conv2d(channels, width, 1)
        self.excite = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The scaled channels."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(means))))


class TokenMix(nn.Module):
    """A low-rank map over the T tokens of [N, T, D], the same for each channel; Tolstikhin et al., NeurIPS 2021."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        self.gather = nn.Linear(tokens, width)
        self.spread = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed tokens."""
        gathered = torch.nn.functional.gelu(self.gather(x.transpose(1, 2)))
        mixed: Tensor = self.spread(gathered).transpose(1, 2)
        return mixed


def _squeeze_excite(span: Span) -> nn.Module:
    mix = nn.Conv2d(span.channels_in, span.channels_out, 1, span.stride, bias=False)
    return nn.Sequential(SqueezeExcite(span.channels_in, span.width), mix)


def _token_mix(span: Span) -> nn.Module:
    bridge = [] if span.channels_in == span.channels_out else [nn.Linear(span.channels_in, span.channels_out)]
    return nn.Sequential(TokenMix(span.tokens, max(4, span.tokens // 4)), *bridge)


def _normalized_adapter(span: Span) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(span.channels_in), *_adapter(span))


def _low_rank(span: Span) -> nn.Sequential:
    """As LoRA puts it beside a linear map; Hu et al., ICLR 2022."""
    return nn.Sequential(nn.Linear(span.channels_in, span.width, bias=False), nn.Linear(span.width, span.channels_out))


def _adapter(span: Span) -> nn.Sequential:
    """Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019."""
    return nn.Sequential(nn.Linear(span.channels_in, span.width), nn.GELU(), nn.Linear(span.width, span.channels_out))


def _conv_bn_relu(channels_in: int, channels_out: int, size: int, *, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


Primitive = Callable[[Span], nn.Module]
IMAGE_PRIMITIVES: dict[str, Primitive] = {
    "bottleneck": _bottleneck,
    "separable_conv_3x3": _separable,
    "squeeze_excite": _squeeze_excite,
    "depthwise_conv_5x5": lambda span: _depthwise(span, 5),
    "dilated_conv_3x3": lambda span: _separable(span, dilation=2),
    "low_rank_1x1": _pointwise,
    "depthwise_conv_3x3": lambda span: _depthwise(span, 3),
    "depthwise_conv_7x7": lambda span: _depthwise(span, 7),
    "instance_norm": _renormalized,
    "average_pool": lambda span: _pooled(span, nn.AvgPool2d(3, span.stride, 1)),
    "max_pool": lambda span: _pooled(span, nn.MaxPool2d(3, span.stride, 1)),
}
FEATURE_PRIMITIVES: dict[str, Primitive] = {"low_rank": _low_rank, "adapter": _adapter, "norm": _normalized_adapter}
TOKEN_PRIMITIVES: dict[str, Primitive] = {**FEATURE_PRIMITIVES, "token_mix": _token_mix}
# By the number of dimensions of one input: vectors [D], tokens [T, D], images [C, H, W].
PRIMITIVES_BY_RANK = {1: FEATURE_PRIMITIVES, 2: TOKEN_PRIMITIVES, 3: IMAGE_PRIMITIVES}


def primitives_for(block: Block) -> dict[str, Primitive]:
    """The primitives that fit the block's shapes; empty where none does."""
    if span_of(block) is None:
        return {}
    return PRIMITIVES_BY_RANK[len(block.input_shape)]


def span_of(block: Block) -> Span | None:
    """What a branch beside the block has to bridge; None where no branch can."""
    entered, left = block.input_shape, block.output_shape
    if len(entered) == len(left) == 3:
        strides = {-(-entered[axis] // left[axis]) for axis in (1, 2)}
        stride = strides.pop()
        fits = not strides and all(-(-entered[axis] // stride) == left[axis] for axis in (1, 2))
        return Span(entered[0], left[0], stride) if fits else None
    if len(entered) == len(left) in (1, 2) and entered[:-1] == left[:-1]:
        return Span(entered[-1], left[-1], tokens=entered[0] if len(entered) == 2 else 0)
    return None
