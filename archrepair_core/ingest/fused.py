"""Fused inference operators, which have no derivative, written again from parts that have one.

Models traced without gradients hold them: attention, and a whole layer of `nn.TransformerEncoder`.
"""

import ast
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from archrepair_core.ingest.graphs import Node, is_constant
from archrepair_core.ingest.operators import UnsupportedNodeError
from archrepair_core.ingest.scope import Body
from archrepair_core.ingest.syntax import FUNCTION_PREFIX, assign, assign_all, call, name

# Arguments of aten::_native_multi_head_attention, and those that matter without mask and weights.
_ATTENTION = (
    *("query", "key", "value", "embed_dim", "num_head", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias"),
    *("mask", "need_weights", "average_attn_weights", "mask_type"),
)
_ATTENTION_READ = ("query", "key", "value", "num_head", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias")


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


def transformer_encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Optional[Tensor],  # noqa: UP045
    mask_type: Optional[int],  # noqa: UP045
) -> Tensor:
    """`aten::_transformer_encoder_layer_fwd` on (batch, length, width); its arguments, in its order.

    `mask` is added to the scores, or True where not to look: per pair of positions, per item, or per head of each.
    """
    y = F.layer_norm(src, [embed_dim], norm_weight_1, norm_bias_1, eps) if norm_first else src
    heads = F.linear(y, qkv_weight, qkv_bias).unflatten(-1, [3, num_heads, -1]).permute(2, 0, 3, 1, 4)
    bias: Optional[Tensor] = None  # noqa: UP045
    if mask is not None:
        # 1 is a mask of padding, (batch, length); others fit the scores as they are.
        bias = mask[:, None, None, :] if mask_type is not None and mask_type == 1 else mask
        if bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape, dtype=src.dtype, device=src.device).masked_fill(bias, float("-inf"))
    attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=bias)
    y = src + F.linear(attended.transpose(1, 2).flatten(2), proj_weight, proj_bias)
    if not norm_first:
        y = F.layer_norm(y, [embed_dim], norm_weight_1, norm_bias_1, eps)
    z = F.layer_norm(y, [embed_dim], norm_weight_2, norm_bias_2, eps) if norm_first else y
    z = F.linear(z, ffn_weight_1, ffn_bias_1)
    z = F.linear(F.gelu(z) if use_gelu else F.relu(z), ffn_weight_2, ffn_bias_2)
    return y + z if norm_first else F.layer_norm(y + z, [embed_dim], norm_weight_2, norm_bias_2, eps)


def _write_attention(node: Node, body: Body) -> list[ast.stmt]:
    inputs = dict(zip(_ATTENTION, node.inputs(), strict=True))
    mask, weights = inputs["mask"], inputs["need_weights"]
    if not (is_constant(mask) and mask.toIValue() is None and is_constant(weights) and not weights.toIValue()):
        raise UnsupportedNodeError("aten::_native_multi_head_attention with a mask or weights")
    read = [body.read(value) for argument, value in inputs.items() if argument in _ATTENTION_READ]
    targets = [body.bind(value) for value in node.outputs()]
    return [assign_all(targets, _call(native_attention, read, body))]


def _write_encoder_layer(node: Node, body: Body) -> list[ast.stmt]:
    inputs = list(node.inputs())
    source = inputs[0].node()
    if source.kind().startswith("aten::_nested_tensor_from_mask"):
        raise UnsupportedNodeError("aten::_nested_tensor_from_mask (set enable_nested_tensor=False)")
    return [
        assign(body.bind(node.output()), _call(transformer_encoder_layer, [body.read(value) for value in inputs], body))
    ]


def _call(function: Callable[..., Any], arguments: list[ast.expr], body: Body) -> ast.expr:
    identifier = f"{FUNCTION_PREFIX}{function.__name__}"
    body.scope.namespace[identifier] = function
    return call(name(identifier), *arguments)


FUSED: MappingProxyType[str, Callable[[Node, Body], list[ast.stmt]]] = MappingProxyType(
    {
        "aten::_native_multi_head_attention": _write_attention,
        "aten::_transformer_encoder_layer_fwd": _write_encoder_layer,
    }
)
