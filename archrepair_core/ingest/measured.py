"""`torch.nn` modules rebuilt as the real classes where a proof from their graphs would be too long: they are measured.

One table from class name to how it is made from the archive's settings, and what it is then asked. A module whose
answers differ anywhere, in either mode, is generated from its graphs instead.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from archrepair_core.ingest.graphs import bare_name, type_name
from archrepair_core.ingest.outputs import largest_relative_difference
from archrepair_core.modes import eval_mode

_TORCH_NN = "__torch__.torch.nn.modules."
# By bits of the mantissa: in half precision two orders of the same sums differ more.
_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_TOLERANCE = 1e-5
_LENGTH, _SOURCE_LENGTH, _BATCH = 3, 4, 2

Shapes = Mapping[str, torch.Size]
Probe = tuple[Any, ...]


@dataclass(frozen=True)
class Measured:
    """`make` gives an empty module, or None where the settings make no sense; `probes` the arguments to compare on.

    `methods` besides `forward` may be called from outside: the real class has them too.
    """

    make: Callable[[torch.jit.ScriptModule], nn.Module | None]
    probes: Callable[[nn.Module], Iterator[Probe]]
    methods: frozenset[str] = frozenset()


def build_measured(original: torch.jit.ScriptModule, called: set[str]) -> nn.Module | None:
    """The module `original` says it is, with its settings, to be filled and compared; None for all others.

    A trace has lost its settings. `called` are the methods that other modules call.
    """
    kind = _kind(original)
    if kind is None or not called <= {"forward", *kind.methods}:
        return None
    return kind.make(original)


def behaves_alike(module: nn.Module, original: torch.jit.ScriptModule) -> bool:
    """Whether a measured module gives the archive's answers on random inputs in both modes; others are not asked."""
    kind = _kind(original)
    if kind is None or type(module).__module__.partition(".")[0] != "torch":
        return True
    # With gradients on: without, TorchScript's fast path returns an undefined tensor that Python cannot hold.
    # eval_mode puts the modes back; inside, both run in either.
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), eval_mode(original), eval_mode(module):
        torch.manual_seed(0)
        return all(
            _same(module.train(training), original.train(training), probe)
            for training in (True, False)
            for probe in kind.probes(module)
        )


def _kind(original: torch.jit.ScriptModule) -> Measured | None:
    qualified = bare_name(type_name(original))
    return _MEASURED.get(qualified.removeprefix(_TORCH_NN)) if qualified.startswith(_TORCH_NN) else None


def _same(module: nn.Module, original: torch.jit.ScriptModule, probe: Probe) -> bool:
    try:
        answers = [_seeded(run, probe) for run in (module, original)]
    except (RuntimeError, torch.jit.Error, AttributeError, TypeError, AssertionError):
        return False
    return largest_relative_difference(*answers) <= _TOLERANCES.get(_dtype(module), _TOLERANCE)


def _seeded(run: Any, probe: Probe) -> Any:
    # Dropout draws the same numbers in both.
    torch.manual_seed(1)
    # A script has no `forward` where there are overloads of it: the first one takes tensors.
    return run.forward__0(*probe) if hasattr(run, "forward__0") else run(*probe)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), torch.float32)


def _settings(original: torch.jit.ScriptModule, types: Mapping[str, type]) -> dict[str, Any] | None:
    """The named attributes, or None if one is missing or of another type."""
    found = {name: original._c.getattr(name) for name in types if original._c.hasattr(name)}
    return found if all(type(found.get(name)) is kind for name, kind in types.items()) else None


def _shapes(module: nn.Module) -> Shapes:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _if_same_shapes(module: nn.Module, original: torch.jit.ScriptModule) -> nn.Module | None:
    return module if _shapes(module) == _shapes(original) else None


_ATTENTION = {"embed_dim": int, "num_heads": int, "kdim": int, "vdim": int, "dropout": float}
_ATTENTION |= {"batch_first": bool, "add_zero_attn": bool}


def _make_attention(original: torch.jit.ScriptModule) -> nn.Module | None:
    settings, shapes = _settings(original, _ATTENTION), _shapes(original)
    if settings is None:
        return None
    width, heads = settings["embed_dim"], settings["num_heads"]
    if not 0 < heads <= width or width % heads or width not in shapes.get("out_proj.weight", ()):
        return None
    layer = nn.MultiheadAttention(
        **settings, bias="in_proj_bias" in shapes, add_bias_kv="bias_k" in shapes, device="meta"
    )
    return _if_same_shapes(layer, original)


def _attention_probes(layer: Any) -> Iterator[Probe]:
    dtype = _dtype(layer)
    query, key, value = (
        torch.randn((_BATCH, length, width) if layer.batch_first else (length, _BATCH, width), dtype=dtype)
        for length, width in ((_LENGTH, layer.embed_dim), (_SOURCE_LENGTH, layer.kdim), (_SOURCE_LENGTH, layer.vdim))
    )
    mask = torch.zeros(_LENGTH, _SOURCE_LENGTH, dtype=dtype).masked_fill(torch.rand(_LENGTH, _SOURCE_LENGTH) > 0.7, -1)
    for weights in (True, False):
        yield query, key, value, None, weights, mask
    yield query, key, value
    if layer.kdim == layer.vdim == layer.embed_dim:
        yield query, query, query, None, False


_RECURRENT = {"input_size": int, "hidden_size": int, "num_layers": int, "bias": bool, "batch_first": bool}
_RECURRENT |= {"dropout": float, "bidirectional": bool, "proj_size": int}


def _make_recurrent(layer: Callable[..., nn.Module], original: torch.jit.ScriptModule) -> nn.Module | None:
    settings = _settings(original, _RECURRENT)
    sizes = [settings[name] for name in ("input_size", "hidden_size", "num_layers")] if settings else []
    # The archive's tensors bound the sizes it claims.
    if settings is None or not all(0 < size <= sum(map(len, original.state_dict().values())) for size in sizes):
        return None
    if layer is not nn.LSTM and settings.pop("proj_size"):
        return None
    if layer is nn.RNN:
        settings["nonlinearity"] = "relu" if original._c.getattr("mode") == "RNN_RELU" else "tanh"
    return _if_same_shapes(layer(**settings, device="meta"), original)


def _recurrent_probes(layer: Any) -> Iterator[Probe]:
    yield (torch.randn(_BATCH, _LENGTH, layer.input_size, dtype=_dtype(layer)),)
    yield (torch.randn(_LENGTH, layer.input_size, dtype=_dtype(layer)),)


_ACTIVATIONS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {1: F.relu, 2: F.gelu}


def _make_encoder_layer(original: torch.jit.ScriptModule) -> nn.Module | None:
    settings = _settings(original, {"norm_first": bool, "activation_relu_or_gelu": int})
    children = dict(original.named_children())
    if settings is None or settings["activation_relu_or_gelu"] not in _ACTIVATIONS or "self_attn" not in children:
        return None
    attention = _make_attention(children["self_attn"])  # type: ignore[arg-type]
    if not isinstance(attention, nn.MultiheadAttention) or "linear1.weight" not in _shapes(original):
        return None
    layer = nn.TransformerEncoderLayer(
        attention.embed_dim,
        attention.num_heads,
        _shapes(original)["linear1.weight"][0],
        activation=_ACTIVATIONS[settings["activation_relu_or_gelu"]],
        batch_first=attention.batch_first,
        norm_first=settings["norm_first"],
        bias="linear1.bias" in _shapes(original),
        device="meta",
    )
    return _if_same_shapes(layer, original)


def _width(layer: Any) -> int:
    return int(layer.self_attn.embed_dim)


def _encoder_layer_probes(layer: Any) -> Iterator[Probe]:
    shape = (_BATCH, _LENGTH) if layer.self_attn.batch_first else (_LENGTH, _BATCH)
    src = torch.randn(*shape, _width(layer), dtype=_dtype(layer))
    yield (src,)
    yield src, torch.triu(torch.full((_LENGTH, _LENGTH), float("-inf"), dtype=src.dtype), 1)
    padding = torch.zeros(_BATCH, _LENGTH, dtype=torch.bool)
    padding[0, -1] = True
    yield src, None, padding


def _make_encoder(original: torch.jit.ScriptModule) -> nn.Module | None:
    settings = _settings(original, {"enable_nested_tensor": bool, "use_nested_tensor": bool, "mask_check": bool})
    children = dict(original.named_children())
    layers = [] if "layers" not in children else list(children["layers"].children())
    if settings is None or not layers:
        return None
    first = _make_encoder_layer(layers[0])  # type: ignore[arg-type]
    if not isinstance(first, nn.TransformerEncoderLayer):
        return None
    norm = nn.Identity() if "norm" in children else None  # replaced by the archive's own
    encoder = nn.TransformerEncoder(first, len(layers), norm, enable_nested_tensor=False)
    for name, value in settings.items():
        setattr(encoder, name, value)
    return encoder


def _encoder_probes(encoder: Any) -> Iterator[Probe]:
    yield from _encoder_layer_probes(encoder.layers[0])


_MEASURED: MappingProxyType[str, Measured] = MappingProxyType(
    {
        "activation.MultiheadAttention": Measured(_make_attention, _attention_probes, frozenset({"merge_masks"})),
        "transformer.TransformerEncoderLayer": Measured(_make_encoder_layer, _encoder_layer_probes),
        "transformer.TransformerEncoder": Measured(_make_encoder, _encoder_probes),
        **{
            f"rnn.{layer.__name__}": Measured(partial(_make_recurrent, layer), _recurrent_probes)
            for layer in (nn.RNN, nn.LSTM, nn.GRU)
        },
    }
)
