"""Which inputs a model takes, worked out from its layers: a TorchScript archive does not say it.

The first layer names the channels. The side is read off a position embedding where there is one; else the usual sides
are tried until the model runs, and a model that shrinks its input little is taken for one of small images.
"""

import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.verify import RUN_ERRORS
from archrepair_core.interface import input_dtype
from archrepair_core.modes import eval_mode

Shape = tuple[int, ...]

USUAL_SIDES = (224, 32, 28, 64, 96, 128, 160, 192, 240, 256, 299, 384, 448, 512)
# Where the last feature map is at least an eighth of the input, images of 224 pixels would have been pooled further.
SMALL_SIDES = (32, 28, 64, 96)
SMALL_MODEL_STRIDE = 8
USUAL_LENGTHS = (128, 1024, 16_000)
PROBE_BATCH = 2
# Of one input. More would be a mistake, or a way to have the engine run out of memory.
MAX_ELEMENTS = 1 << 24
MAX_GUESS_SECONDS = 20.0
_HINT = "give input_shape, e.g. [3, 224, 224], or read the blocks after a job: it brings real inputs"


def example_inputs(model: nn.Module, shape: Shape) -> Tensor:
    """Random inputs of that shape, batch first, the same every time, in the model's own precision.

    Raises `model.input_shape_too_large`.
    """
    if math.prod(shape) > MAX_ELEMENTS:
        detail = f"an input of {'×'.join(map(str, shape))} has more than {MAX_ELEMENTS:,} numbers, and is not tried"
        raise ModelError("input_shape_too_large", detail, hint="give the shape of one input, without the batch")
    inputs = torch.randn(PROBE_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    return inputs.to(input_dtype(model))


def guess_input_shape(model: nn.Module, *, max_seconds: float = MAX_GUESS_SECONDS) -> Shape:
    """The likeliest shape, without the batch, that the model runs on. Raises `model.input_shape_unknown`."""
    deadline = time.monotonic() + max_seconds
    found, reason = _first_that_runs(model, candidate_shapes(model), deadline)
    if found is None:
        raise ModelError("input_shape_unknown", f"no usual input shape fits the model: {reason}", hint=_HINT)
    if len(found) == 3 and not _strides_at_once(model) and _shrinks_little(model, found):
        smaller = [(found[0], side, side) for side in SMALL_SIDES if side < found[1]]
        found = _first_that_runs(model, smaller, deadline)[0] or found
    return found


def candidate_shapes(model: nn.Module) -> list[Shape]:
    """Shapes worth trying, likeliest first; empty when no layer tells what the input could be."""
    convolution = next((item for item in model.modules() if isinstance(item, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if convolution is not None:
        sides = _embedded_sides(model, convolution)
        return _convolution_inputs(convolution.in_channels, convolution.weight.ndim - 2, sides)
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    kernel = next((weight for weight in weights if weight.ndim == 4), None)
    if kernel is not None:
        return _convolution_inputs(kernel.shape[1], 2, ())
    matrix = next((weight for weight in weights if weight.ndim == 2), None)
    return [] if matrix is None else list(_linear_inputs(matrix.shape[1]))


def _convolution_inputs(channels: int, dimensions: int, sides: Sequence[int]) -> list[Shape]:
    if dimensions == 1:
        return [(channels, length) for length in USUAL_LENGTHS]
    frames = (16,) * (dimensions - 2)
    # Pictures of one channel are digits and scans more often than photographs.
    usual = (28, *USUAL_SIDES) if channels == 1 else USUAL_SIDES
    return [(channels, *frames, side, side) for side in dict.fromkeys((*sides, *usual))]


def _linear_inputs(features: int) -> Iterator[Shape]:
    """The row itself, or the image that was flattened to it, or a sequence of such rows."""
    yield (features,)
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side > 1 and channels * side * side == features:
            yield (channels, side, side)
    yield (16, features)


def _embedded_sides(model: nn.Module, patches: nn.Module) -> list[int]:
    """Image sides that a learned position per patch betrays: 1×N×width for N patches, with or without extra tokens."""
    if not isinstance(patches, nn.Conv2d) or patches.stride != patches.kernel_size:
        return []
    sides = []
    for parameter in model.parameters():
        if parameter.ndim != 3 or parameter.shape[0] != 1 or parameter.shape[2] != patches.out_channels:
            continue
        for extra_tokens in (1, 0, 2):
            count = parameter.shape[1] - extra_tokens
            if count > 1 and math.isqrt(count) ** 2 == count:
                sides.append(math.isqrt(count) * patches.stride[0])
    return sides


def _first_that_runs(model: nn.Module, shapes: Sequence[Shape], deadline: float) -> tuple[Shape | None, str]:
    """The first shape that works, or None and why the likeliest did not."""
    reason = "its layers do not tell what they take"
    for number, shape in enumerate(shapes):
        failure = _failure(model, shape)
        if failure is None:
            return shape, ""
        if number == 0:
            reason = f"e.g. {list(shape)}: {failure}"
        if time.monotonic() > deadline:
            break
    return None, reason


def _failure(model: nn.Module, shape: Shape) -> str | None:
    try:
        with eval_mode(model), torch.no_grad():
            model(example_inputs(model, shape))
    except RUN_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[-1][:300] if lines else type(error).__name__
    return None


def _strides_at_once(model: nn.Module) -> bool:
    """Whether the first convolution already drops pixels, which small images cannot spare."""
    first = next((item for item in model.modules() if isinstance(item, nn.Conv2d)), None)
    return first is not None and max(first.stride) > 1


def _shrinks_little(model: nn.Module, shape: Shape) -> bool:
    """Whether the smallest feature map, pooled ones aside, is at least 1/SMALL_MODEL_STRIDE of the input's side."""
    sides: list[int] = []

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.ndim == 4 and output.shape[-1] > 1:
            sides.append(output.shape[-1])

    handles = [item.register_forward_hook(note) for item in model.modules() if isinstance(item, nn.Conv2d)]
    try:
        failed = _failure(model, shape)
    finally:
        for handle in handles:
            handle.remove()
    return failed is None and bool(sides) and min(sides) * SMALL_MODEL_STRIDE >= shape[-1]
