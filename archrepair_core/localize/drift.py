"""Statistics drift: which block first changes what the network knows of itself, from unlabelled inputs.

A network with batch-norm records the healthy mean and variance of every normalised tensor. Where a block is damaged,
the divergence of the present statistics from the record jumps up in it; an input shift shows from the first layer on.
Relatives: the batch-norm loss of DeepInversion (Yin et al., CVPR 2020), drift estimation from batch-norm statistics
(arXiv 2107.00191). Shapes: I inputs, L layers, B weightings of the inputs, C channels of one layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from archrepair_core.blocks import Block
from archrepair_core.fingerprint import MIN_VARIANCE, ChannelStatistics, Fingerprint, watch_channels
from archrepair_core.localize.rank import Floats, LayerDrift
from archrepair_core.modes import eval_mode

# Nats per channel by which 30 inputs like the training data differ from the record at most layers: below is noise.
NOISE_NATS = 0.02
# A map that is the reference's up to rounding has not changed.
MIN_CHANGE = 1e-9


@dataclass(frozen=True)
class Moments:
    """Per input and layer: mean of the channel's distance to the reference mean, and of its square; float32 [I, C]."""

    mean_IC: Tensor
    square_IC: Tensor


@dataclass(frozen=True)
class Drift:
    """`layers` in execution order, whose divergences over resampled inputs are `divergence_BL`; block scores [B, N].

    `jump_BN` is the largest step, in nats, from one layer to the next within a block; `before_N` the largest divergence
    of any layer before the block, over all inputs.
    """

    layers: tuple[str, ...]
    divergence_BL: Floats
    score_BN: Floats
    jump_BN: Floats
    before_N: Floats

    def rows(self) -> tuple[LayerDrift, ...]:
        """The fingerprint layer by layer, over all inputs."""
        values = self.divergence_BL[0]
        jumps = values - np.concatenate([[0.0], values[:-1]])
        rows = zip(self.layers, values, jumps, strict=True)
        return tuple(LayerDrift(name, float(value), float(jump)) for name, value, jump in rows)


def measure_drift(
    model: nn.Module,
    batches: Iterable[Tensor],
    reference: Fingerprint,
    *,
    blocks: Sequence[Block],
    weights_BI: npt.NDArray[np.float32],
) -> Drift:
    """Divergence from `reference` at its layers, one forward pass per batch, no labels.

    A block's score says where the divergence *begins*: the logarithm of how many times its largest layer diverges more
    than every layer before that one. What comes after a damaged block often diverges more than the block itself does,
    but by a smaller factor. A block without a layer comes last.
    """
    moments = _observe_moments(model, batches, reference)
    weights = torch.from_numpy(weights_BI / weights_BI.sum(1, keepdims=True))
    divergences = [_divergence(seen, weights, reference[name]) for name, seen in moments.items()]
    divergence_BL = torch.stack(divergences, dim=1).double().numpy()
    layers = tuple(moments)
    columns = [[i for i, layer in enumerate(layers) if owns(block, layer)] for block in blocks]
    before = [max(divergence_BL[0, : own[0]], default=0.0) if own else 0.0 for own in columns]
    jumps_BL = np.diff(divergence_BL, axis=1, prepend=0.0)
    score_BN, jump_BN = (_largest_within(values_BL, columns) for values_BL in (onset_of(divergence_BL), jumps_BL))
    return Drift(layers, divergence_BL, score_BN, jump_BN, np.array(before))


def onset_of(divergence_BL: Floats) -> Floats:
    """Logarithm of how many times each layer diverges more than every layer before it, beyond the noise; [B, L]."""
    running_BL = np.maximum.accumulate(divergence_BL, axis=1)
    before_BL = np.concatenate([np.zeros((len(running_BL), 1)), running_BL[:, :-1]], axis=1)
    return np.log((divergence_BL + NOISE_NATS) / (before_BL + NOISE_NATS))


def _largest_within(values_BL: Floats, columns: Sequence[Sequence[int]]) -> Floats:
    """Per block the largest value of its layers [B, N]; below all others for a block that has none."""
    lowest_B = values_BL.min(1) - 1.0
    return np.stack([values_BL[:, own].max(1) if own else lowest_B for own in columns], axis=1)


def compare_with_reference(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Tensor],
    *,
    blocks: Sequence[Block],
    weights_BI: npt.NDArray[np.float32],
) -> Floats:
    """How far each block's own map is from the reference's, [B, N]: both see the *reference's* input of the block.

    The squared distance of the two outputs over the variance of the reference's. A block whose input is equal and map
    is not is to blame; one that only receives what another spoiled scores 0.
    """
    changes = {block.name: list[Tensor]() for block in blocks}
    sizes = {block.name: list[Tensor]() for block in blocks}
    device = next(model.parameters()).device

    def compare(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], expected: Tensor) -> None:
            given = [own.get(id(value), value) for value in args]
            answer = model.get_submodule(name)(*given, **{key: own.get(id(kwargs[key]), kwargs[key]) for key in kwargs})
            changes[name].append((answer - expected).flatten(1).float().square().mean(1).cpu())
            centred = expected.float() - expected.float().mean(0, keepdim=True)
            sizes[name].append(centred.flatten(1).square().mean(1).cpu())

        return hook

    own = _counterparts(model, reference)
    handles = [reference.get_submodule(name).register_forward_hook(compare(name), with_kwargs=True) for name in changes]
    try:
        with torch.inference_mode(), eval_mode(model), eval_mode(reference):
            for inputs in batches:
                reference(inputs.to(device))
    finally:
        for handle in handles:
            handle.remove()
    weights = torch.from_numpy(weights_BI)
    scores = [
        weights @ torch.cat(changes[name]) / (weights @ torch.cat(sizes[name])).clamp_min(MIN_VARIANCE)
        if changes[name]
        else torch.zeros(len(weights))
        for name in changes
    ]
    score_BN = torch.stack(scores, dim=1).double().numpy()
    return np.where(score_BN > MIN_CHANGE, score_BN, 0.0)


def owns(block: Block, layer: str) -> bool:
    """Whether a layer is part of a block, or one that a block without layers of its own computes with."""
    inside = layer == block.name or layer.startswith(f"{block.name}.")
    return inside or any(tensor.startswith(f"{layer}.") for tensor in block.borrowed)


def _counterparts(model: nn.Module, reference: nn.Module) -> Mapping[int, Tensor]:
    """By identity of the reference's tensor, the model's: a block that borrows weights is handed its host's."""
    own = dict([*model.named_parameters(), *model.named_buffers()])
    theirs = [*reference.named_parameters(), *reference.named_buffers()]
    return {id(tensor): own[name] for name, tensor in theirs if name in own}


def _observe_moments(model: nn.Module, batches: Iterable[Tensor], reference: Fingerprint) -> dict[str, Moments]:
    parts: dict[str, list[Moments]] = {}
    device = next(model.parameters()).device
    with torch.inference_mode(), eval_mode(model), watch_channels(model, list(reference)) as seen:
        for inputs in batches:
            seen.clear()
            model(inputs.to(device))
            for name, values_NC in seen.items():
                # Distances to the reference keep float32 exact enough for a variance far smaller than the mean.
                away = (values_NC.float() - reference[name].mean_C.float()).unflatten(0, (len(inputs), -1))
                parts.setdefault(name, []).append(Moments(away.mean(1).cpu(), away.square().mean(1).cpu()))
    return {
        name: Moments(torch.cat([m.mean_IC for m in layer]), torch.cat([m.square_IC for m in layer]))
        for name, layer in parts.items()
    }


def _divergence(seen: Moments, weights_BI: Tensor, reference: ChannelStatistics) -> Tensor:
    """KL(N(seen) ‖ N(reference)) in nats, averaged over channels, per weighting [B]; as fingerprint.divergence."""
    mean_BC, square_BC = weights_BI @ seen.mean_IC, weights_BI @ seen.square_IC
    variance = (square_BC - mean_BC.square()).clamp_min(MIN_VARIANCE)
    expected = reference.variance_C.float().cpu().clamp_min(MIN_VARIANCE)
    return 0.5 * ((variance + mean_BC.square()) / expected - 1 - (variance / expected).log()).mean(1)
