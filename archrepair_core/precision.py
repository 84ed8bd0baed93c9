"""In which number format a training step computes; weights, averages and everything measured stay float32."""

import time
from typing import Literal

import torch
from torch import Tensor, nn

from archrepair_core.modes import eval_mode

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
# Short of this gain, the eight bits of mantissa are not given away.
WORTHWHILE_GAIN = 1.5
NUM_TRIED = 4
# So few inputs tell a processor that computes bfloat16 by emulation, where a whole batch would take a minute.
NUM_SCREENED = 2
# Passes over them are short and uneven: only a clear loss counts.
HOPELESS_GAIN = 0.5
# Shorter passes cannot be told apart on a busy machine, and a job must come out the same each time.
MIN_SECONDS = 0.02


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context a forward runs in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def resolve_precision(gain: float) -> Precision:
    """bfloat16 where it makes training so many times as fast that it is worth its coarser numbers."""
    return "bfloat16" if gain >= WORTHWHILE_GAIN else "float32"


def bfloat16_gain(model: nn.Module, inputs: Tensor) -> float:
    """How many times as fast forward and backward over `inputs` are; 0 where it cannot run, 1 if too short to tell.

    Processors without instructions for it are slower, and so are small models, that spend their time elsewhere.
    """
    with eval_mode(model), torch.enable_grad():
        try:
            screened = _fastest_passes(model, inputs[:NUM_SCREENED])
        except RuntimeError:  # an operator without a bfloat16 kernel
            return 0.0
        if screened["bfloat16"] > max(MIN_SECONDS, screened["float32"] / HOPELESS_GAIN):
            return screened["float32"] / screened["bfloat16"]
        fastest = _fastest_passes(model, inputs)
    return fastest["float32"] / fastest["bfloat16"] if fastest["float32"] >= MIN_SECONDS else 1.0


def _fastest_passes(model: nn.Module, inputs: Tensor) -> dict[Precision, float]:
    """Seconds of the fastest pass in each precision: whatever else runs on the machine only ever adds."""
    for name in PRECISIONS:
        _pass_seconds(model, inputs, name)  # the first pass also sets up
    turns = [{name: _pass_seconds(model, inputs, name) for name in PRECISIONS} for _ in range(NUM_TRIED)]
    return {name: min(turn[name] for turn in turns) for name in PRECISIONS}


def _pass_seconds(model: nn.Module, inputs: Tensor, precision: Precision) -> float:
    started = time.perf_counter()
    with autocast(inputs.device, precision):
        outputs = model(inputs)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if weights:
        torch.autograd.grad(outputs.float().sum(), weights, allow_unused=True)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)
    return time.perf_counter() - started
