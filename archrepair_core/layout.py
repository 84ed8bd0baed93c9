"""In which order the weights of convolutions lie in memory: channels last on a CPU, which convolves faster by it.

A convolution whose weights lie so answers so, whatever its input, and the layers behind it follow: nothing else has to
be laid out. On a GPU it pays with tensor cores alone and was not measured: there weights stay.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from archrepair_core.modes import eval_mode

# Sums are taken in another order; more than that is another model.
RELATIVE_TOLERANCE = 1e-3


def lay_out_(model: nn.Module, inputs_NCHW: Tensor) -> None:
    """Lay the weights of convolutions out in place, or not where the model then answers otherwise or not at all: some
    ask for a `view` of activations, which only their own order has."""
    weights = [each for each in model.parameters() if each.dim() == 4 and each.is_contiguous()]
    if inputs_NCHW.device.type != "cpu" or not weights:
        return
    with torch.no_grad(), eval_mode(model):
        before = model(inputs_NCHW)
        _order_(weights, torch.channels_last)
        try:
            same = torch.allclose(
                model(inputs_NCHW), before, rtol=0, atol=RELATIVE_TOLERANCE * float(before.abs().max())
            )
        except RuntimeError:
            same = False
        if not same:
            _order_(weights, torch.contiguous_format)


def lay_back_(model: nn.Module, strides: Mapping[str, tuple[int, ...]]) -> None:
    """Give every tensor the strides it has in the file; what the file does not know is made contiguous."""
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        wanted = strides.get(name, torch.empty(tensor.shape, device="meta").stride())
        if tensor.dim() == 4 and tensor.stride() != wanted:
            tensor.data = torch.empty_strided(tensor.shape, wanted, dtype=tensor.dtype, device=tensor.device).copy_(
                tensor.data
            )


def _order_(weights: list[nn.Parameter], memory_format: torch.memory_format) -> None:
    """The parameters stay the same objects: ties and optimizers hold."""
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=memory_format)
