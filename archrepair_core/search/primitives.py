"""Primitives: small operations that can stand beside a block, from the block's input to its output.

A branch starts as the zero function: its last factor is a zero `scale` per output channel (zero-γ, Goyal et al. 2017;
ReZero, Bachlechner et al. 2021), so a candidate begins as the original block. Images are [N, C, H, W]; tokens [N, T, D]
and vectors [N, D] use the adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from archrepair_core.blocks import Block


@dataclass(frozen=True)
class Span:
    """What a branch has to bridge: channels in and out, and the stride of an image block (1 for everything else)."""

    channels_in: int
    channels_out: int
    stride: int = 1

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


def _pointwise(span: Span) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(span.channels_in, span.width, 1, stride=span.stride, bias=False),
        nn.Conv2d(span.width, span.channels_out, 1),
    )


def _low_rank(span: Span) -> nn.Module:
    return nn.Sequential(nn.Linear(span.channels_in, span.width, bias=False), nn.Linear(span.width, span.channels_out))


def _adapter(span: Span) -> nn.Module:
    return nn.Sequential(nn.Linear(span.channels_in, span.width), nn.GELU(), nn.Linear(span.width, span.channels_out))


def _conv_bn_relu(channels_in: int, channels_out: int, size: int, *, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


Primitive = Callable[[Span], nn.Module]
IMAGE_PRIMITIVES: dict[str, Primitive] = {
    "bottleneck": _bottleneck,
    "separable_conv_3x3": _separable,
    "dilated_conv_3x3": lambda span: _separable(span, dilation=2),
    "low_rank_1x1": _pointwise,
}
FEATURE_PRIMITIVES: dict[str, Primitive] = {"low_rank": _low_rank, "adapter": _adapter}


def primitives_for(block: Block) -> dict[str, Primitive]:
    """The primitives that fit the block's shapes; empty where none does."""
    if span_of(block) is None:
        return {}
    return IMAGE_PRIMITIVES if len(block.input_shape) == 3 else FEATURE_PRIMITIVES


def span_of(block: Block) -> Span | None:
    """What a branch beside the block has to bridge; None where no branch can."""
    entered, left = block.input_shape, block.output_shape
    if len(entered) == len(left) == 3:
        strides = {-(-entered[axis] // left[axis]) for axis in (1, 2)}
        stride = strides.pop()
        fits = not strides and all(-(-entered[axis] // stride) == left[axis] for axis in (1, 2))
        return Span(entered[0], left[0], stride) if fits else None
    if len(entered) == len(left) in (1, 2) and entered[:-1] == left[:-1]:
        return Span(entered[-1], left[-1])
    return None
