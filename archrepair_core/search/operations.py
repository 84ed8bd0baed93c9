"""The operations an edge of a searched cell may hold: those of DARTS for images, adapters for tokens and vectors.

Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1 and appendix. Where an edge changes
channels or resolution, skip and pools end in a 1×1 convolution (DARTS halves with two of them side by side). Every
operation is a plain sequence of `torch.nn` layers, so that a file can describe it; none overwrites its input.
"""

from collections.abc import Callable

from torch import nn

from archrepair_core.blocks import Block
from archrepair_core.search.primitives import FEATURE_PRIMITIVES, Span, primitives_for

Operation = Callable[[Span], nn.Module]
ORIGINAL, NONE, SKIP = "original", "none", "skip_connect"


def _depthwise_separable(span: Span, size: int, *, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (size // 2)
    depthwise = nn.Conv2d(
        span.channels_in, span.channels_in, size, span.stride, padding, dilation, span.channels_in, bias=False
    )
    pointwise = nn.Conv2d(span.channels_in, span.channels_out, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(span.channels_out)]


def _separable(span: Span, size: int) -> nn.Sequential:
    """Twice, the stride in the first: as DARTS does it."""
    first = Span(span.channels_in, span.channels_in, span.stride)
    second = Span(span.channels_in, span.channels_out)
    return nn.Sequential(*_depthwise_separable(first, size), *_depthwise_separable(second, size))


def _pool(span: Span, layer: nn.Module) -> nn.Sequential:
    bridge = [] if span.channels_in == span.channels_out else [_bridge(span)]
    return nn.Sequential(layer, *bridge, nn.BatchNorm2d(span.channels_out))


def _skip_image(span: Span) -> nn.Sequential:
    if span == Span(span.channels_in, span.channels_in):
        return nn.Sequential(nn.Identity())
    return nn.Sequential(nn.ReLU(), _bridge(span, stride=span.stride), nn.BatchNorm2d(span.channels_out))


def _bridge(span: Span, *, stride: int = 1) -> nn.Module:
    return nn.Conv2d(span.channels_in, span.channels_out, 1, stride, bias=False)


def _skip_feature(span: Span) -> nn.Sequential:
    if span.channels_in == span.channels_out:
        return nn.Sequential(nn.Identity())
    return nn.Sequential(nn.Linear(span.channels_in, span.channels_out, bias=False))


IMAGE_OPERATIONS: dict[str, Operation] = {
    "sep_conv_3x3": lambda span: _separable(span, 3),
    "sep_conv_5x5": lambda span: _separable(span, 5),
    "dil_conv_3x3": lambda span: nn.Sequential(*_depthwise_separable(span, 3, dilation=2)),
    "dil_conv_5x5": lambda span: nn.Sequential(*_depthwise_separable(span, 5, dilation=2)),
    "max_pool_3x3": lambda span: _pool(span, nn.MaxPool2d(3, span.stride, 1)),
    "avg_pool_3x3": lambda span: _pool(span, nn.AvgPool2d(3, span.stride, 1, count_include_pad=False)),
    SKIP: _skip_image,
}
FEATURE_OPERATIONS: dict[str, Operation] = {**FEATURE_PRIMITIVES, SKIP: _skip_feature}


def searched_operations(block: Block) -> dict[str, Operation]:
    """What every edge of a supernet in the block's place chooses from, besides `none` and the original block."""
    return IMAGE_OPERATIONS if len(block.input_shape) == 3 else FEATURE_OPERATIONS


def operations_for(block: Block) -> dict[str, Operation]:
    """Everything an edge of a cell in the block's place may hold, by name."""
    cell = IMAGE_OPERATIONS if len(block.input_shape) == 3 else FEATURE_OPERATIONS
    return {**primitives_for(block), **cell}
