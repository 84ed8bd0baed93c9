"""Archives that pass the gate, as harmless models do: only loading or running them shows what they are."""

import struct

from tests.archrepair_core.hostile.archives import (
    ATTRIBUTES,
    FORWARD,
    NUM_CLASSES,
    NUM_INPUTS,
    TRAINING,
    Table,
    archive,
    module,
    pickled,
    program,
    records,
    text,
    with_forward,
)
from tests.archrepair_core.hostile.pickles import laughs, of_value
from tests.archrepair_core.hostile.programs import expression, many_modules


def with_weight(value: float) -> bytes:
    """An archive with one weight of this value."""
    others = struct.pack("<f", 0.01) * (NUM_INPUTS * NUM_CLASSES - 1)
    return archive(records(tensor=others + struct.pack("<f", value)))


def nested_modules(levels: int) -> bytes:
    """A class for each level, each holding the next."""
    code = ""
    for level in range(levels):
        name = f"Level{level}"
        inner = f"__torch__.net.Level{level - 1}" if level else "__torch__.net.Leaf"
        code += f"class {name}(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n"
        code += f"  inner : {inner}\n"
        code += f"  def forward(self: __torch__.net.{name},\n    x: Tensor) -> Tensor:\n"
        code += "    inner = self.inner\n    return (inner).forward(x, )\n"
    leaf = program().replace("class Net(", "class Leaf(").replace("__torch__.net.Net", "__torch__.net.Leaf")
    data = module(ATTRIBUTES, "__torch__.net\nLeaf")
    for level in range(levels):
        data = module(TRAINING + text("inner") + data, f"__torch__.net\nLevel{level}")
    return archive(records(code=leaf + code, data=pickled(data)))


# These pass the gate, as harmless models do; only running them shows.
def loops(levels: int) -> str:
    """A body of loops in loops."""
    lines = [f"{'  ' * (2 + level)}for i{level} in range(1):\n" for level in range(levels)]
    return "".join(lines) + "  " * (2 + levels) + f"x = torch.add(x, 0)\n{FORWARD}"


def adding(answer: str) -> str:
    """A body that adds `answer` to what the model says; code without an effect would be dropped."""
    return FORWARD.replace("return ", "_1 = ") + f"    return torch.add(_1, {answer})\n"


BEHAVIOUR: Table = {
    "weights that are not numbers": (lambda _: with_weight(float("nan")), "model.non_finite_weights", "weight"),
    "infinite weights": (lambda _: with_weight(float("inf")), "model.non_finite_weights", "weight"),
    "a billion laughs in tuples": (lambda _: of_value(laughs(100, b"h?h?\x86")), "succeeded", ""),
    "a billion laughs in lists": (lambda _: of_value(laughs(100, b"](h?h?e")), "succeeded", ""),
    "aten::resize_ behind a method of that name": (
        lambda _: with_forward(f"    _0 = (x).resize_([1000000])\n{FORWARD}",
                               after="  def resize_(self: __torch__.net.Net,\n    x: int) -> int:\n    return x\n"),
        "model.operator_not_allowed", "aten::resize_ in __torch__.net.Net.forward"),
    "forward that never ends": (
        lambda _: with_forward(f"    while True:\n      x = torch.add(x, 1)\n{FORWARD}"),
        "job.max_runtime_exceeded", ""),
    "forward that wants four terabytes": (
        lambda _: with_forward(adding("torch.sum(torch.zeros([1099511627776]))")), "worker.out_of_memory", "memory"),
    "forward that fills the memory": (
        lambda _: with_forward(
            "    y = annotate(List[Tensor], [])\n    for _2 in range(10000):\n"
            "      _0 = torch.append(y, torch.ones([67108864]))\n" + adding("torch.sum(torch.stack(y))")),
        "worker.out_of_memory", "memory"),
    "forward that raises": (
        lambda _: with_forward(f'    ops.prim.RaiseException("no", "builtins.ValueError")\n{FORWARD}'),
        "dataset.shape_mismatch", "ValueError: no"),
    "forward that answers by chance": (
        lambda _: with_forward(adding("torch.rand([torch.size(x, 0), 4])")), "succeeded", ""),
    "forward that calls itself": (
        lambda _: with_forward("    return (self).forward(x, )\n"), "model.unreadable", "recursively"),
    "forward that answers no tensor": (
        lambda _: archive(records(code=program("    return 3\n").replace(
            "-> Tensor:\n    weight = self.weight\n    return 3", "-> int:\n    return 3"))),
        "model.output_not_logits", "int"),
    "forward that indexes outside": (
        lambda _: with_forward(adding("torch.sum(torch.index_select(x, 0, torch.full([9], 1000000, dtype=4)))")),
        "dataset.shape_mismatch", "index"),
    "operators with arguments of other types": (
        lambda _: expression("torch.conv2d(weight, 3, 'a', None)"), "model.unreadable", "not valid"),
    "a model nested in 140 levels": (lambda _: nested_modules(140), "succeeded", ""),
    "sixty nested loops": (lambda _: with_forward(loops(60)), "model.too_deeply_nested", "nested"),
    "with a tensor": (
        lambda _: with_forward(f"    with x:\n      pass\n{FORWARD}"), "model.unreadable", "With item"),
    "ten thousand statements": (lambda _: with_forward("    x = torch.relu(x)\n" * 10_000 + FORWARD), "succeeded", ""),
    "ten thousand modules": (lambda _: many_modules(10_000), "succeeded", ""),
}  # fmt: skip
