"""Nets written by hand, one for each construct that the libraries' models do not have."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.coverage import nets_control, nets_layers, nets_modules, nets_sequences
from tests.coverage.entry import KINDS, Entry, Kind


class TiedWeights(nn.Module):
    """The embedding is the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))


def _floats(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[int], tuple[Any, ...]]:
    return lambda count: (torch.rand(count, *shape, dtype=dtype),)


def _several(count: int) -> tuple[Any, ...]:
    return torch.rand(count, 3, 5, 5), torch.rand(count, 5), torch.randint(0, 20, (count, 4))


def _nested(count: int) -> tuple[Any, ...]:
    one, two, three = torch.rand(3, count, 6)
    return (one, two), [two, three], {"x": one}


_IMAGES, _SQUARES = _floats(3, 8, 10), _floats(3, 8, 8)
_ROWS, _WIDE_ROWS = _floats(3, 6, 10), _floats(3, 6, 12)
_WORDS: Callable[[int], tuple[Any, ...]] = lambda count: (torch.randint(1, 30, (count, 9)),)  # noqa: E731

_PATH = "a trace holds the one path through the program it was made on"
_MODE = "what forward does in train mode only is not in a trace made in eval mode"
_ATTENTION = "a trace made in eval mode has lost the dropout probability of attention"


_OTHER_PATH: tuple[tuple[Kind, str, str], ...] = (("traced", "outputs", f"{_PATH}, for a batch of another size"),)
_TUPLE: tuple[tuple[Kind, str, str], ...] = (
    ("traced", "blocks", "in a trace a recurrent layer gives one tensor, and so is a block of its own"),
)
_OWN_BLOCKS: tuple[tuple[Kind, str, str], ...] = tuple(
    (kind, "again", "the host reads settings off its blocks or gives them masks: the search puts nothing beside them")
    for kind in KINDS
)


def _entry(
    build: Callable[[], nn.Module],
    inputs: Callable[[int], tuple[Any, ...]] = _IMAGES,
    *,
    name: str = "",
    only: Kind | None = None,
    lost: str = "",
    tolerance: float = 1e-5,
    exceptions: tuple[tuple[Kind, str, str], ...] = (),
) -> Entry:
    """`lost` says why a trace cannot do in train mode what the eager model does."""
    in_train_mode = (("traced", "train_mode", lost), ("traced", "gradients", lost)) if lost else ()
    return Entry(
        name=f"handwritten/{name or build.__name__}",
        family="handwritten",
        build=build,
        inputs=inputs,
        kinds=(only,) if only else ("scripted", "traced"),
        tolerance=tolerance,
        keeps_values=True,
        exceptions=(*in_train_mode, *exceptions),
    )


def _variants(build: Callable[..., nn.Module], inputs: Any, variants: dict[str, dict[str, Any]], **more: Any) -> Any:
    return (_entry(partial(build, **settings), inputs, name=name, **more) for name, settings in variants.items())


_RECURRENT = {
    f"{kind.__name__}{suffix}": {"kind": kind, **settings}
    for kind in (nn.RNN, nn.LSTM, nn.GRU)
    for suffix, settings in (("", {}), ("-deep", {"num_layers": 2, "bidirectional": True, "dropout": 0.3}))
} | {
    "RNN-relu": {"kind": nn.RNN, "nonlinearity": "relu"},
    "LSTM-without-bias": {"kind": nn.LSTM, "bias": False},
    "LSTM-projected": {"kind": nn.LSTM, "proj_size": 5},
}
_ENCODERS: dict[str, dict[str, Any]] = {
    "Encoder": {},
    "Encoder-norm-first": {"norm_first": True, "final_norm": True},
    "Encoder-gelu": {"activation": "gelu"},
    "Encoder-own-activation": {"activation": nn.SiLU()},
    "Encoder-sequence-first": {"batch_first": False},
}
_PROGRAMS = (
    *("Asserts", "AnyValue", "Comprehensions", "DictMethods", "Enums", "ListMethods", "NamedInput"),
    *("NamedTensors", "NestedLoops", "NoGrad", "Optionals", "OtherMethods", "Strings", "Unions"),
)
_LAYERS = (
    *("Activations", "InPlace", "Mathematics", "Norms", "OneAndThree", "Ordered", "OwnNorm", "Paddings", "Patches"),
    *("Pools", "SpatialTransformer", "Spectral", "Surgery", "Upscaling"),
)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="tied_weights",
        family="handwritten",
        build=TiedWeights,
        inputs=lambda count: (torch.randint(11, (count, 5)),),
        fast=("scripted",),
        exceptions=(("traced", "blocks", "the trace hands the embedding's weight to the head as a second input"),),
    ),
    *(_entry(getattr(nets_control, name)) for name in _PROGRAMS),
    _entry(
        nets_control.Exported,
        exceptions=(
            ("traced", "blocks", "its layers have a traced and a scripted method, and stay as they are called"),
        ),
    ),
    _entry(nets_control.NestedReturns, lost=_PATH),
    _entry(nets_control.FreeFunctions, lost=_PATH, exceptions=_OTHER_PATH),
    _entry(nets_control.Numbers, exceptions=_OTHER_PATH),
    _entry(nets_control.NamedAnswers, only="scripted"),
    _entry(nets_control.TupleOfTuples, only="scripted"),
    *(_entry(getattr(nets_modules, name)) for name in ("Dicts", "Lists", "OptionalChild", "Recurrent")),
    _entry(nets_modules.Buffers, _SQUARES, lost=_MODE),
    _entry(nets_modules.InPlaceBuffers, lost=_MODE),
    _entry(nets_modules.Noise, lost=_MODE),
    _entry(
        nets_modules.Mixed,
        exceptions=tuple((kind, "again", "the registry's branch is float32, this block bfloat16") for kind in KINDS),
    ),
    _entry(
        nets_modules.Tied,
        _floats(12),
        exceptions=(
            ("scripted", "blocks", "a module under two names comes back as two modules with tied parameters"),
            ("traced", "again", "a module under two names is traced with the other's weight as an input"),
        ),
    ),
    _entry(nets_modules.SeveralInputs, _several),
    _entry(nets_modules.NestedInputs, _nested, only="scripted"),
    *(
        _entry(partial(nets_modules.Typed, dtype), _floats(3, 8, 10, dtype=dtype), name=f"{dtype}", tolerance=tolerance)
        # Half precision keeps 11 bits, bfloat16 8, and both lose some on the way.
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2))
    ),
    *_variants(nets_sequences.RecurrentHead, _ROWS, _RECURRENT, exceptions=_TUPLE),
    *(_entry(getattr(nets_sequences, name), _ROWS, exceptions=_TUPLE) for name in ("CarriedState", "Cells", "Packed")),
    *_variants(nets_sequences.Encoder, _WIDE_ROWS, _ENCODERS, lost=_ATTENTION, exceptions=_OWN_BLOCKS),
    *_variants(
        nets_sequences.Text,
        _WORDS,
        {"Text": {}, "Text-norm-first": {"norm_first": True}},
        lost=_ATTENTION,
        exceptions=_OWN_BLOCKS,
    ),
    *(
        _entry(getattr(nets_sequences, name), _WIDE_ROWS, lost=_ATTENTION, exceptions=_OWN_BLOCKS)
        for name in ("Causal", "WholeTransformer")
    ),
    _entry(
        nets_sequences.Decoder,
        _WIDE_ROWS,
        lost=_ATTENTION,
        exceptions=(*_OWN_BLOCKS, ("traced", "blocks", "traced self-attention takes one tensor, and so is a block")),
    ),
    _entry(partial(nets_sequences.Attention, batch_first=True), _WIDE_ROWS, name="Attention", lost=_ATTENTION),
    _entry(partial(nets_sequences.Attention, add_bias_kv=True), _WIDE_ROWS, name="Attention-kv", lost=_ATTENTION),
    _entry(nets_sequences.OwnAttention, _WIDE_ROWS),
    *(_entry(getattr(nets_layers, name)) for name in _LAYERS),
    _entry(nets_layers.Dropouts, lost="in eval mode the branches that only drop are one and the same value"),
    _entry(nets_layers.Parametrized, only="traced", lost=_MODE),
    _entry(nets_layers.Products, only="traced"),
)
