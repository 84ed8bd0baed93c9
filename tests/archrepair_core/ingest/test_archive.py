import subprocess
import sys
import zipfile
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import ATEN_OPERATORS, NODE_KINDS, PRIM_OPERATORS
from archrepair_core.ingest.archive import ingest_archive, load_archive, repack_archive
from archrepair_core.ingest.inspect import inspect_archive


def outputs(module: torch.jit.ScriptModule, x: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module(x)


def test_the_ingested_copy_gives_bit_identical_outputs(small_archive, tmp_path):
    loaded = ingest_archive(small_archive, tmp_path)
    x = torch.rand(3, 3, 9, 9)
    assert torch.equal(outputs(loaded.root, x), outputs(torch.jit.load(small_archive), x))
    original = torch.jit.load(small_archive).state_dict()
    assert loaded.root.state_dict().keys() == original.keys()
    assert all(parameter.requires_grad for parameter in loaded.root.parameters())


def test_the_compilation_unit_knows_free_functions(tmp_path):
    torch.jit.script(nn.BatchNorm2d(3)).save(tmp_path / "norm.pt")
    loaded = ingest_archive(tmp_path / "norm.pt", tmp_path)
    assert loaded.compilation_unit.find_function("__torch__.torch.nn.functional.batch_norm") is not None


def test_a_copy_can_be_repacked_again_to_the_same_bytes(small_archive, tmp_path):
    first = repack_archive(small_archive, tmp_path / "1.pt")
    second = repack_archive(tmp_path / "1.pt", tmp_path / "2.pt")
    assert first.num_parameters == second.num_parameters
    assert (tmp_path / "1.pt").read_bytes() == (tmp_path / "2.pt").read_bytes()


def test_only_checked_records_are_copied(changed, tmp_path):
    path = changed({"extra/note.txt": b"hello", "data/999": b"junk", "code/__torch__/x.py.debug_pkl": b"cos\nsystem\n"})
    repack_archive(path, tmp_path / "copy.pt")
    with zipfile.ZipFile(tmp_path / "copy.pt") as copy:
        names = copy.namelist()
        assert b"system" not in b"".join(copy.read(name) for name in names)
    assert not [name for name in names if "extra" in name or "debug" in name or name.endswith("/999")]


def test_a_refused_archive_leaves_no_copy(changed, tmp_path):
    path = changed({"code/__torch__/x.py": b"import os\n"})
    with pytest.raises(ModelError):
        repack_archive(path, tmp_path / "copy.pt")
    assert not (tmp_path / "copy.pt").exists()


def test_corruption_found_while_copying_leaves_no_copy(small_archive, tmp_path):
    with zipfile.ZipFile(small_archive) as archive:
        content = archive.read("small/data/0")
    data = bytearray(small_archive.read_bytes())
    data[data.index(content)] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        repack_archive(tmp_path / "flipped.pt", tmp_path / "copy.pt")
    assert caught.value.code == "model.corrupt"
    assert not (tmp_path / "copy.pt").exists()


@pytest.mark.parametrize("version", [b"3", b"4", b"7", b"10"])
def test_every_supported_format_version_loads_and_agrees(changed, small_archive, tmp_path, version):
    loaded = ingest_archive(changed({"version": version}), tmp_path)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(outputs(loaded.root, x), outputs(torch.jit.load(small_archive), x))


def test_an_operator_the_text_hides_is_found_in_the_graph_before_any_call(changed, record, tmp_path):
    # A method of that name makes the attribute look harmless, but on a Tensor TorchScript picks the operator.
    name = "code/__torch__/torch/nn/modules/linear.py"
    text = record(name).decode().replace("    return", "    _9 = (input).resize_([1000000])\n    return")
    text += "  def resize_(self: __torch__.torch.nn.modules.linear.Linear, x: int) -> int:\n    return x\n"
    path = changed({name: text.encode()})
    inspect_archive(path)
    with pytest.raises(ModelError) as caught:
        ingest_archive(path, tmp_path)
    assert caught.value.code == "model.operator_not_allowed"
    assert "aten::resize_ in __torch__.torch.nn.modules.linear.Linear.forward" in caught.value.detail


def peek(self: nn.Module, input: tuple[Tensor]) -> tuple[Tensor]:
    return input


def test_hooks_are_found_even_without_the_static_gate(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_pre_hook(peek)
    torch.jit.script(module).save(tmp_path / "hooked.pt")
    with pytest.raises(ModelError, match="forward hooks"):
        load_archive(tmp_path / "hooked.pt")


def test_what_torch_cannot_compile_is_unreadable_with_its_reason(changed, record, tmp_path):
    name = "code/__torch__/torch/nn/modules/linear.py"
    text = record(name).decode().replace("torch.linear(", "torch.linear(1, ")
    with pytest.raises(ModelError) as caught:
        ingest_archive(changed({name: text.encode()}), tmp_path)
    assert caught.value.code == "model.unreadable"
    assert caught.value.hint


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


class Unusual(nn.Module):
    """What printers get wrong: one-tuples, infinities, long strings, while loops, lists, dicts, negative slices."""

    table: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.table = {"a b": 1, "é": 2}
        self.limit = float("inf")
        self.parts = nn.ModuleDict({"odd name!": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> tuple[Pair, tuple[Tensor], str, dict[str, list[int]]]:
        i = 0
        shapes: list[int] = []
        while i < 2 and float(i) < self.limit:
            i += 1
            shapes.append(x.size(-1))
        (y,) = (x * self.weight,)
        for part in self.parts.values():
            y = part(y)
        text = f"a 'quoted' \"text\"\n\twith {i} loops and a rather long tail that is not inlined by the printer"
        return Pair(y[..., -2:], None), (y.clamp(-1e-7, 1e30),), text, {"shapes": shapes}


def test_unusual_syntax_survives_printing(tmp_path):
    torch.jit.script(Unusual()).save(tmp_path / "unusual.pt")
    loaded = ingest_archive(tmp_path / "unusual.pt", tmp_path)
    x = torch.rand(2, 4)
    (pair, (single,), text, table) = loaded.root(x)
    (pair0, (single0,), text0, table0) = torch.jit.load(tmp_path / "unusual.pt")(x)
    assert torch.equal(pair.first, pair0.first)
    assert torch.equal(single, single0)
    assert (text, table) == (text0, table0)


@pytest.mark.slow
def test_repacking_a_large_tensor_takes_little_memory(tmp_path):
    torch.jit.script(nn.Linear(5_000, 4_000, bias=False)).save(tmp_path / "large.pt")
    program = (
        "from pathlib import Path; from archrepair_core.ingest.archive import repack_archive;"
        "from tests.resident_memory import resident_bytes; before = resident_bytes('VmHWM');"
        f"repack_archive(Path({str(tmp_path / 'large.pt')!r}), Path({str(tmp_path / 'copy.pt')!r}));"
        "grown = resident_bytes('VmHWM') - before; assert grown < 30_000 * 1024, grown"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_every_listed_operator_exists_and_none_takes_a_file_storage_or_generator():
    schemas: dict[str, list[torch._C.FunctionSchema]] = {}
    for schema in torch._C._jit_get_all_schemas():
        schemas.setdefault(schema.name, []).append(schema)
    listed = {f"aten::{name}" for name in ATEN_OPERATORS} | {f"prim::{name}" for name in PRIM_OPERATORS}
    assert listed <= schemas.keys()
    for name in NODE_KINDS & schemas.keys():
        for schema in schemas[name]:
            kinds = {(argument.name, str(argument.type)) for argument in schema.arguments}
            assert not {kind for _, kind in kinds} & {"Storage", "Future[t]", "RRef[t]"}, schema
            assert not {argument for argument, kind in kinds if kind == "str"} & {"filename", "file", "path"}, schema


@pytest.mark.parametrize(
    "name", ["aten::save", "aten::from_file", "aten::set_", "aten::resize_", "prim::fork", "aten::wait"]
)
def test_dangerous_operators_are_not_listed(name):
    assert name not in NODE_KINDS


def test_upload_in_the_scratch_folder_survives_being_read(small_archive, tmp_path):
    for name in ("model.pt", "checked.pt"):
        upload = tmp_path / name
        upload.write_bytes(small_archive.read_bytes())
        ingest_archive(upload, tmp_path)
        assert upload.read_bytes() == small_archive.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checked.pt", "model.pt"]
