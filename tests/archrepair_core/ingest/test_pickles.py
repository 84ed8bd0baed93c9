import contextlib
import os
import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archrepair_core.errors import ModelError
from archrepair_core.ingest.inert import EnumMember, Object, Storage, Tensor, iterate_values
from archrepair_core.ingest.pickles import read_pickle

START = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(
    *, key: str = "0", count: int = 12, offset: int = 0, shape: bytes, stride: bytes, device: str = "cpu"
) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text(device) + integer(count) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + shape + stride + b"\x88" + hooks + b"tR"
    )


def module(attributes: bytes, name: str = "__torch__\nNet") -> bytes:
    return f"c{name}\n".encode() + b")\x81}(" + attributes + b"ub"


def read(body: bytes) -> object:
    return read_pickle(START + body + b".", "data.pkl")


def refusal(body: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read(body)
    assert caught.value.hint
    return caught.value


def test_a_module_with_a_tensor_is_read_as_inert_values():
    value = read(module(text("weight") + tensor(shape=sizes(3, 4), stride=sizes(4, 1)) + text("training") + b"\x89"))
    assert isinstance(value, Object)
    assert value.class_name == "__torch__.Net"
    assert value.attributes["training"] is False
    assert value.attributes["weight"] == Tensor(Storage("0", "FloatStorage", 12), 0, (3, 4), (4, 1), True)
    assert value.attributes["weight"].storage.num_bytes == 48


def test_scalars_containers_and_enum_members_are_read():
    body = b"(" + integer(-7) + b"G" + struct.pack(">d", 0.5) + b"](NK\x05e" + b"}(" + text("k") + b"\x88u"
    value = read(
        body + b"c__torch__\nFormat\n" + text("nchw") + b"R" + b"ctorch\ndevice\n" + text("cuda:0") + b"\x85Rt"
    )
    number, half, items, table, member, device = value
    assert (number, half, items, table) == (-7, 0.5, [None, 5], {"k": True})
    assert member == EnumMember("__torch__.Format", "nchw")
    assert device.name == "cuda:0"


def test_a_shared_object_is_one_object():
    value = read(b"(" + module(b"") + b"q\x00h\x00t")
    assert value[0] is value[1]
    assert sum(isinstance(item, Object) for item in iterate_values([*value])) == 2, "childless objects are not tracked"


class Exploit:
    def __reduce__(self):
        return os.system, ("echo attacked > attacked",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_real_exploit_runs_nothing_and_is_named(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        read_pickle(pickle.dumps(Exploit(), protocol), "data.pkl")
    assert caught.value.code == "model.unsafe_pickle"
    if protocol == 2:
        assert "posix.system" in caught.value.detail
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "os\nsystem",
        "builtins\neval",
        "torch.distributed.rpc\nrref",
        "torch._utils\n_rebuild_sparse_tensor",
        "torch._tensor\n_rebuild_from_type_v2",
        "__main__\nTensorID",
        "torch\nload",
        "__torch__.a-b\nNet",
        "__torch__\n",
    ],
)
def test_globals_outside_the_list_are_refused(name):
    error = refusal(f"c{name}\n)R".encode())
    assert error.code == "model.unsafe_pickle"
    assert repr(name.replace("\n", ".")) in error.detail


@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_qtensor", "torch\nQInt8Storage"])
def test_quantized_tensors_are_called_quantized(name):
    assert refusal(f"c{name}\n)R".encode()).code == "model.quantized"


@pytest.mark.parametrize(
    ("change", "inside"),
    [
        ({}, True),
        ({"offset": 1}, False),
        ({"offset": -1}, False),
        ({"shape": sizes(3, 5), "stride": sizes(4, 1)}, False),
        ({"shape": sizes(12, 1), "stride": sizes(1, 1)}, True),
        ({"shape": sizes(2, 2), "stride": sizes(11, 1)}, False),
        ({"shape": sizes(-3, 4)}, False),
        ({"stride": sizes(-4, 1)}, False),
        ({"shape": sizes(12)}, False),
        ({"shape": sizes(0, 4), "count": 0}, True),
        ({"shape": sizes(1 << 61, 1 << 61), "stride": sizes(0, 0)}, False),
        ({"shape": sizes(1 << 40), "stride": sizes(0)}, False),
        ({"shape": sizes(100, 4), "stride": sizes(0, 1)}, True),
        ({"count": -1}, False),
        ({"key": "../0"}, False),
        ({"device": "meta"}, False),
    ],
)
def test_a_tensor_must_lie_inside_its_storage(change, inside):
    body = tensor(**{"shape": sizes(3, 4), "stride": sizes(4, 1), **change})
    if inside:
        assert isinstance(read(body), Tensor)
    else:
        assert refusal(body).code in ("model.tensor_geometry", "model.unsafe_pickle")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"N" + b"r" + struct.pack("<I", 1 << 31), "memo index 2147483648"),
        (b"h\x05", "memo index"),
        (b"(K\x01", "unbalanced"),
        (b"NN", "unbalanced"),
        (b"0", "opcode b'0'"),
        (b"t", "without a mark"),
        (b"(\x85", "empty stack"),
        (b"K\x00)R", "a call of '0'"),
        (b"K\x00}b", "no class"),
        (b"c__torch__\nNet\n)\x81(K\x01tb", "__setstate__"),
        (b"c__torch__\nNet\n(K\x01t\x81", "with arguments"),
        (b"c__torch__\nNet\n", "bare reference"),
        (b"ctorch\nFloatStorage\n", "bare reference"),
        (b"}(" + text("a") + b"N" + text("a") + b"Nu", "twice"),
        (b"}(" + text("a") + b"u", "without a value"),
        (b"}()Nu", "dictionary key"),
        (b"N(K\x01e", "a list belongs"),
        (b"]q\x00(K\x01e", "finished"),
        (b"ctorch.jit._pickle\nbuild_intlist\n](K\x01e\x85R(Ne", "finished"),
        (b"ctorch.jit._pickle\nbuild_intlist\n](Ne\x85R", "int"),
        (b"ctorch.jit._pickle\nbuild_tensorlist\n](K\x01e\x85R", "Tensor"),
        (b"ctorch.jit._pickle\nrestore_type_tag\n]" + text("List[__import__('os')]") + b"\x86R", "type tag"),
        (b"ctorch.jit._pickle\nrestore_type_tag\n]" + text("List[__torch__.torch.classes.X]") + b"\x86R", "type tag"),
        (b"ctorch.jit._pickle\nrestore_type_tag\nN" + text("List[int]") + b"\x86R", "no container"),
        (b"ctorch\ndevice\n" + text("vulkan") + b"\x85R", "vulkan"),
        (b"ccollections\nOrderedDict\n(Nt" + b"R", "a call of"),
        (b"\x8a\x01\x05", "64 bits"),
        (b"X\x01\x00\x00\x00\xff", "UTF-8"),
        (b"X\xff\xff\xff\xffabc", "ends early"),
        (b"N" + b"\x85" * 1000, "nested deeper"),
    ],
)
def test_what_torch_never_writes_is_refused(body, word):
    error = refusal(body)
    assert error.code == "model.unsafe_pickle"
    assert word in error.detail


def test_a_hundred_thousand_levels_of_nesting_do_not_exhaust_the_stack():
    assert "nested deeper" in refusal(b"N" + b"\x85" * 100_000).detail


def test_a_billion_laughs_is_read_in_linear_time():
    # Level n holds level n-1 twice: 2**100 leaves if sharing were not noticed.
    value = read(b"N\x85q\x00" + b"".join(bytes([0x68, i, 0x86, 0x71, i + 1]) for i in range(100)))
    assert len(list(iterate_values(value))) < 1000


def test_a_billion_laughs_is_never_printed():
    laughs = b"N\x85q\x00" + b"".join(bytes([0x68, i, 0x86, 0x71, i + 1]) for i in range(100))
    for body in (laughs + b"Q", b"cos\n" + b"x\n", b"ctorch\ndevice\n" + laughs + b"R", b"}(" + laughs + b"Nu"):
        assert len(refusal(body).detail) < 300


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_model_error(data):
    with contextlib.suppress(ModelError):
        read_pickle(START + data, "data.pkl")
