"""A TorchScript archive written by hand, part by part, so that each part can be made hostile. No torch is needed."""

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

FOLDER = "net"
CODE = "code/__torch__/net.py"
FORWARD = "    layer = self.layer\n    return torch.matmul((layer).forward(torch.flatten(x, 1), ), weight)\n"
# 8×8 grey pixels through one layer to 4 classes.
NUM_INPUTS, NUM_CLASSES = 64, 4
_LAYER = (
    "class Layer(Module):\n"
    '  __parameters__ = ["weight", ]\n'
    "  __buffers__ = []\n"
    "  weight : Tensor\n"
    "  training : bool\n"
    "  def forward(self: __torch__.net.Layer,\n    x: Tensor) -> Tensor:\n"
    "    weight = self.weight\n"
    "    return torch.relu(torch.matmul(x, weight))\n"
)


@dataclass(frozen=True)
class Canary:
    """What a payload tries to reach: it must neither create `file` nor connect to `port` of this machine."""

    file: str
    port: int


# What is hostile, how it is built, the code it is refused with, and words of the refusal.
Table = dict[str, tuple[Callable[[Canary], bytes], str, str]]


def program(forward: str = FORWARD, *, members: str = "", after: str = "", before: str = "") -> str:
    """The code of a module with a layer and a weight; `forward` is its body."""
    return (
        f"{before}{_LAYER}class Net(Module):\n"
        '  __parameters__ = ["weight", ]\n'
        "  __buffers__ = []\n"
        "  weight : Tensor\n"
        "  training : bool\n"
        "  layer : __torch__.net.Layer\n"
        f"{members}"
        "  def forward(self: __torch__.net.Net,\n    x: Tensor) -> Tensor:\n"
        "    weight = self.weight\n"
        f"{forward}{after}"
    )


def records(**changes: bytes | str | None) -> dict[str, bytes]:
    """The records of the archive by name; a keyword replaces `code`, `data` (the pickle) or `tensor`."""
    return {
        "data/0": encoded(changes.get("tensor"), struct.pack("<f", 0.01) * NUM_INPUTS * NUM_CLASSES),
        "data/1": _SQUARE_BYTES,
        "data.pkl": encoded(changes.get("data"), pickled(module(ATTRIBUTES))),
        CODE: encoded(changes.get("code"), program().encode()),
        "constants.pkl": b"\x80\x02).",
        "version": b"3\n",
        "byteorder": b"little",
    }


def encoded(value: bytes | str | None, default: bytes) -> bytes:
    return default if value is None else value.encode() if isinstance(value, str) else value


def archive(content: Mapping[str, bytes] | Iterable[tuple[str, bytes]], *, folder: str = FOLDER) -> bytes:
    """The records as a plainly stored zip."""
    pairs = content.items() if isinstance(content, Mapping) else content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, data in pairs:
            target.writestr(zipfile.ZipInfo(f"{folder}/{name}" if folder else name), data)
    return file.getvalue()


def with_forward(forward: str, **parts: str) -> bytes:
    """An archive whose forward has this body, four spaces deep."""
    return archive(records(code=program(forward, **parts)))


def with_data(pickle: bytes) -> bytes:
    """An archive with this data.pkl."""
    return archive(records(data=pickle))


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def module(attributes: bytes, name: str = "__torch__.net\nNet") -> bytes:
    return f"c{name}\n".encode() + b")\x81}(" + attributes + b"ub"


def tensor(
    *,
    count: int = NUM_INPUTS * NUM_CLASSES,
    offset: int = 0,
    shape: bytes = sizes(NUM_INPUTS, NUM_CLASSES),
    stride: bytes = sizes(NUM_CLASSES, 1),
    key: str = "0",
    device: str = "cpu",
    storage: str = "FloatStorage",
    hooks: bytes = b"ccollections\nOrderedDict\n)R",
) -> bytes:
    """A tensor as torch pickles it."""
    reference = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text(device)
    reference += integer(count) + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + integer(offset) + shape + stride + b"\x88" + hooks + b"tR"
    )


WEIGHT = text("weight") + tensor()
TRAINING = text("training") + b"\x89"
_SQUARE = tensor(
    key="1", count=NUM_INPUTS * NUM_INPUTS, shape=sizes(NUM_INPUTS, NUM_INPUTS), stride=sizes(NUM_INPUTS, 1)
)
LAYER = text("layer") + module(text("weight") + _SQUARE + TRAINING, "__torch__.net\nLayer")
_NUMBERS = random.Random(0)
_SQUARE_BYTES = b"".join(struct.pack("<f", _NUMBERS.uniform(-0.2, 0.2)) for _ in range(NUM_INPUTS**2))
ATTRIBUTES = WEIGHT + TRAINING + LAYER
