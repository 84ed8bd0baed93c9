"""`nn.MultiheadAttention` rebuilt as the real class: too many branches for a proof from graphs, so it is measured."""

from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.ingest.graphs import bare_name, type_name
from archrepair_core.ingest.outputs import largest_relative_difference
from archrepair_core.modes import eval_mode

_NAME = "__torch__.torch.nn.modules.activation.MultiheadAttention"
_SETTINGS: dict[str, type] = {
    "embed_dim": int,
    "num_heads": int,
    "kdim": int,
    "vdim": int,
    "dropout": float,
    "batch_first": bool,
    "add_zero_attn": bool,
}
_TOLERANCE = 1e-5
_LENGTH, _SOURCE_LENGTH, _BATCH = 3, 4, 2


# Arguments of aten::_native_multi_head_attention, and those that matter without mask and weights.
NATIVE_ATTENTION = (
    *("query", "key", "value", "embed_dim", "num_head", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias"),
    *("mask", "need_weights", "average_attn_weights", "mask_type"),
)
NATIVE_ATTENTION_READ = ("query", "key", "value", "num_head", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias")


def native_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """`aten::_native_multi_head_attention` (batch, length, width), which has no derivative, from parts that have one.

    Models traced without gradients hold it. The second result stands for the attention weights nobody asked for.
    """
    weights, biases = qkv_weight.chunk(3), qkv_bias.chunk(3)
    heads: list[Tensor] = []
    for index, source in enumerate([query, key, value]):
        projected = torch.nn.functional.linear(source, weights[index], biases[index])
        heads.append(projected.unflatten(-1, [num_heads, -1]).transpose(1, 2))
    attended = torch.nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
    mixed = torch.nn.functional.linear(attended.transpose(1, 2).flatten(2), proj_weight, proj_bias)
    return mixed, torch.empty(0)


def build_attention(original: torch.jit.ScriptModule) -> nn.MultiheadAttention | None:
    """The attention layer `original` says it is, with its sizes; None for a trace, which has lost its settings."""
    if bare_name(type_name(original)) != _NAME:
        return None
    settings = {name: original._c.getattr(name) for name in _SETTINGS if original._c.hasattr(name)}
    if any(type(settings.get(name)) is not kind for name, kind in _SETTINGS.items()):
        return None
    tensors = {name: tensor.shape for name, tensor in original.state_dict().items()}
    width, heads = settings["embed_dim"], settings["num_heads"]
    if not 0 < heads <= width or width % heads or width not in tensors.get("out_proj.weight", ()):
        return None
    layer = nn.MultiheadAttention(
        **settings, bias="in_proj_bias" in tensors, add_bias_kv="bias_k" in tensors, device="meta"
    )
    return layer if tensors == {name: tensor.shape for name, tensor in layer.state_dict().items()} else None


def attends_alike(layer: nn.MultiheadAttention, original: torch.jit.ScriptModule) -> bool:
    """Whether both give the same answers on random inputs, with and without a mask and weights, in both modes."""
    # With gradients on: without, TorchScript's fast path returns an undefined tensor that Python cannot hold.
    # eval_mode puts the modes back; inside, both run in either.
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), eval_mode(original), eval_mode(layer):
        torch.manual_seed(0)
        return all(
            _same(layer.train(training), original.train(training), inputs)
            for training in (True, False)
            for inputs in _probes(layer)
        )


def _probes(layer: nn.MultiheadAttention) -> list[tuple[Any, ...]]:
    dtype = layer.out_proj.weight.dtype
    query, key, value = (
        torch.randn((_BATCH, length, width) if layer.batch_first else (length, _BATCH, width), dtype=dtype)
        for length, width in ((_LENGTH, layer.embed_dim), (_SOURCE_LENGTH, layer.kdim), (_SOURCE_LENGTH, layer.vdim))
    )
    mask = torch.zeros(_LENGTH, _SOURCE_LENGTH, dtype=dtype).masked_fill(torch.rand(_LENGTH, _SOURCE_LENGTH) > 0.7, -1)
    probes: list[tuple[Any, ...]] = [(query, key, value, None, weights, mask) for weights in (True, False)]
    if layer.kdim == layer.vdim == layer.embed_dim:
        probes += [(query, query, query, None, weights) for weights in (True, False)]
    return probes


def _same(layer: nn.MultiheadAttention, original: torch.jit.ScriptModule, inputs: tuple[Any, ...]) -> bool:
    try:
        answers = [_seeded(module, inputs) for module in (layer, original)]
    except (RuntimeError, torch.jit.Error):
        return False
    return largest_relative_difference(*answers) <= _TOLERANCE


def _seeded(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    # Dropout on attention weights draws the same numbers in both.
    torch.manual_seed(1)
    return module(*inputs)
