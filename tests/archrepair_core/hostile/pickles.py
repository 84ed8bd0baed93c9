"""Hostile pickles in place of data.pkl: calls, recursion, sharing without end, tensors outside their memory."""

from tests.archrepair_core.hostile.archives import (
    ATTRIBUTES,
    LAYER,
    TRAINING,
    WEIGHT,
    Table,
    integer,
    module,
    pickled,
    sizes,
    tensor,
    text,
    with_data,
)


def of_value(value: bytes) -> bytes:
    """An archive whose module holds `value` in an attribute its code does not declare."""
    return with_data(pickled(module(ATTRIBUTES + text("extra") + value)))


def of_tensor(**changes: object) -> bytes:
    """An archive whose weight is such a tensor."""
    return with_data(pickled(module(text("weight") + tensor(**changes) + TRAINING + LAYER)))  # type: ignore[arg-type]


def call(function: str, argument: str) -> bytes:
    module_name, _, name = function.rpartition(".")
    return f"c{module_name}\n{name}\n".encode() + text(argument) + b"\x85R"


def laughs(levels: int, pair: bytes) -> bytes:
    """A value of 2**levels leaves in a few bytes a level; `pair` makes a pair of two memo entries."""
    body = b"(" + text("ha") + b"q\x00"
    for level in range(levels):
        body += pair.replace(b"?", bytes([level])) + b"q" + bytes([level + 1])
    return body + b"t"


PICKLES: Table = {
    "REDUCE of os.system": (
        lambda canary: of_value(call("os.system", f"touch {canary.file}")), "unsafe_pickle", "os.system"),
    "REDUCE of builtins.exec": (
        lambda canary: of_value(call("builtins.exec", f"open({canary.file!r},'w')")), "unsafe_pickle", "builtins.exec"),
    "REDUCE of torch.load": (
        lambda canary: of_value(call("torch.load", canary.file)), "unsafe_pickle", "torch.load"),
    "REDUCE of a value": (lambda _: of_value(text("x") + b")R"), "unsafe_pickle", "a call of 'x'"),
    "INST": (
        lambda canary: of_value(b"(" + text(f"touch {canary.file}") + b"ios\nsystem\n"),
        "unsafe_pickle", "opcode b'i'"),
    "OBJ": (lambda _: of_value(b"(cos\nsystem\n" + text("id") + b"o"), "unsafe_pickle", "os.system"),
    "STACK_GLOBAL": (lambda _: of_value(text("os") + text("system") + b"\x93"), "unsafe_pickle", "opcode b'\\x93'"),
    "EXT1": (lambda _: of_value(b"\x82\x01"), "unsafe_pickle", "opcode b'\\x82'"),
    "a text persistent id": (lambda _: of_value(b"P0\n"), "unsafe_pickle", "opcode b'P'"),
    "an odd persistent id": (lambda _: of_value(text("storage") + b"Q"), "unsafe_pickle", "storage reference"),
    "BUILD for __setstate__": (
        lambda _: with_data(pickled(b"c__torch__.net\nNet\n)\x81(" + text("a") + b"tb")), "unsafe_pickle", "setstate"),
    "BUILD of a class of Python": (
        lambda _: of_value(b"ccollections\nOrderedDict\n}(" + text("a") + b"Nub"), "unsafe_pickle", "OrderedDict"),
    "NEWOBJ of a class of Python": (
        lambda _: of_value(b"csubprocess\nPopen\n)\x81"), "unsafe_pickle", "subprocess.Popen"),
    "an unknown opcode": (lambda _: of_value(b"\xff"), "unsafe_pickle", "opcode b'\\xff'"),
    "a later protocol": (lambda _: with_data(b"\x80\x04\x95" + bytes(8) + b"N."), "unsafe_pickle", "protocol"),
    "an empty pickle": (lambda _: with_data(b""), "unsafe_pickle", "ends early"),
    "a pickle that ends early": (lambda _: with_data(b"\x80\x02X\xff\xff\xff\xff"), "unsafe_pickle", "ends early"),
    "bytes after the end": (lambda _: with_data(pickled(module(WEIGHT)) + b"N."), "unsafe_pickle", "after the end"),
    "an empty stack": (lambda _: of_value(b"b"), "unsafe_pickle", ""),
    "an end without a mark": (lambda _: with_data(pickled(b"t")), "unsafe_pickle", "mark"),
    "a memo index of four billion": (lambda _: of_value(b"Nr\xff\xff\xff\xff"), "unsafe_pickle", "memo index"),
    "a memo entry that is not there": (lambda _: of_value(b"j\xff\xff\xff\x7f"), "unsafe_pickle", "memo index"),
    "a hundred thousand nested tuples": (
        lambda _: of_value(b"N" + b"\x85" * 100_000), "unsafe_pickle", "deeper than 150"),
    "a hundred thousand nested lists": (
        lambda _: of_value(b"](" * 100_000 + b"e" * 100_000), "unsafe_pickle", "deeper than 150"),
    "modules nested in two hundred levels": (
        lambda _: with_data(pickled(b"".join(
            [b"c__torch__.net\nNet\n" + b")\x81}(" + WEIGHT + TRAINING + text("child")] * 200
        ) + b"N" + b"ub" * 200)), "unsafe_pickle", "deeper than 150"),
    "a list that contains itself": (lambda _: of_value(b"]q\x00(h\x00e"), "unsafe_pickle", "grows"),
    "a dictionary that contains itself": (
        lambda _: of_value(b"}q\x00" + text("a") + b"h\x00s"), "unsafe_pickle", "grows"),
    "a dictionary key twice": (
        lambda _: of_value(b"}(" + (text("a") + b"N") * 2 + b"u"), "unsafe_pickle", "'a' twice"),
    "an integer of 255 bytes": (lambda _: of_value(b"\x8a\xff" + b"\x7f" * 255), "unsafe_pickle", "64 bits"),
    "an integer of two gigabytes": (lambda _: of_value(b"\x8b\xff\xff\xff\x7f"), "unsafe_pickle", "opcode b'\\x8b'"),
    "a string of four gigabytes": (lambda _: of_value(b"X\xff\xff\xff\xffabc"), "unsafe_pickle", "ends early"),
    "text that is not UTF-8": (lambda _: of_value(text(b"\xc3\x28")), "unsafe_pickle", "UTF-8"),
    "a pickle of nine megabytes": (
        lambda _: of_value(text("x" * (9 << 20))), "archive_too_large", "data.pkl"),
    "a type tag that is code": (
        lambda canary: of_value(
            b"ctorch.jit._pickle\nrestore_type_tag\n(]" + text(f"List[open('{canary.file}')]") + b"tR"),
        "unsafe_pickle", "type tag"),
    "a torchbind object": (
        lambda _: of_value(b"c__torch__.torch.classes.dist_rpc\nWorkerInfo\n)\x81}b"), "unsafe_pickle", "WorkerInfo"),
    "an object of no class of the code": (
        lambda _: with_data(pickled(module(ATTRIBUTES, "__torch__.net\nOther"))), "unsafe_pickle", "Other"),
    "an attribute of another type": (
        lambda _: with_data(pickled(module(WEIGHT + text("training") + text("yes")))), "unsafe_pickle", "Net.training"),
    "an attribute that is missing": (lambda _: with_data(pickled(module(TRAINING))), "unsafe_pickle", "Net.weight"),
    "a value that is no module": (lambda _: with_data(pickled(integer(1))), "not_torchscript", "no module"),
    "a negative size": (lambda _: of_tensor(shape=sizes(-1, 4)), "unsafe_pickle", "malformed"),
    "a negative stride": (lambda _: of_tensor(stride=sizes(-4, 1)), "unsafe_pickle", "malformed"),
    "a negative offset": (lambda _: of_tensor(offset=-1), "unsafe_pickle", "malformed"),
    "an offset outside the memory": (lambda _: of_tensor(offset=1), "tensor_geometry", "outside its storage"),
    "a stride outside the memory": (lambda _: of_tensor(stride=sizes(1 << 40, 1)), "tensor_geometry", "outside"),
    "a shape of exabytes": (lambda _: of_tensor(shape=sizes(1 << 40, 1 << 20)), "tensor_geometry", "outside"),
    "a shape whose product overflows": (
        lambda _: of_tensor(shape=sizes(1 << 32, 1 << 32)), "tensor_geometry", "outside"),
    "a giant broadcast": (
        lambda _: of_tensor(shape=sizes(1 << 40, 4), stride=sizes(0, 1)), "tensor_geometry", "outside"),
    "seventeen dimensions": (
        lambda _: of_tensor(shape=sizes(*[1] * 17), stride=sizes(*[1] * 17)), "unsafe_pickle", "malformed"),
    "fewer strides than sizes": (lambda _: of_tensor(stride=sizes(1)), "unsafe_pickle", "malformed"),
    "memory larger than the record": (lambda _: of_tensor(count=1 << 40), "tensor_geometry", "data/0"),
    "memory that is not there": (lambda _: of_tensor(key="7"), "tensor_geometry", "data/7"),
    "memory named by a path": (lambda _: of_tensor(key="../data.pkl"), "unsafe_pickle", "storage reference"),
    "memory on an unknown device": (lambda _: of_tensor(device="vulkan"), "unsafe_pickle", "storage reference"),
    "memory of an unknown type": (lambda _: of_tensor(storage="PyObjectStorage"), "unsafe_pickle", "PyObjectStorage"),
    "memory of quantized numbers": (lambda _: of_tensor(storage="QInt8Storage"), "quantized", "QInt8Storage"),
    "backward hooks on a tensor": (
        lambda _: of_tensor(hooks=call("os.system", "id")), "unsafe_pickle", "os.system"),
}  # fmt: skip
