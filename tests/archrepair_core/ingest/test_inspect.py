import contextlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.inspect import inspect_archive
from archrepair_core.ingest.records import ArchiveLimits

RESNET20 = Path(os.environ.get("ARCHREPAIR_DATA", "../shared/data")) / "resnet20-cifar10.torchscript.pt"


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class ReadsFile(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + torch.from_file("secret.txt", False, 3)


class WritesFile(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        torch.save([x], "written.bin")
        return x * self.weight


class WritesWhileLoading(Weighted):
    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]
        torch.save([state[0]], "written.bin")

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Forks(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(torch.relu, x * self.weight))


@torch.jit.script
class Scaling:
    def __init__(self, by: float):
        self.by = by


class UsesAClass(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * Scaling(2.0).by


class SwitchesGradientsOff(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.mean()
        return x * self.weight * scale


def peek(self: nn.Module, input: tuple[Tensor]) -> tuple[Tensor]:
    return input


class Hooked(Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(peek)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Parameterless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def refusal(path: Path, *words: str, **limits: int) -> ModelError:
    with pytest.raises(ModelError) as caught:
        inspect_archive(path, limits=ArchiveLimits(**limits))
    assert caught.value.hint
    for word in words:
        assert word in caught.value.detail
    return caught.value


def scripted(module: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "scripted.pt"
    torch.jit.script(module).save(path)
    return path


def float_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()


def test_a_scripted_model_is_summarised(small_archive):
    summary = inspect_archive(small_archive)
    assert summary.root_class.endswith("Small")
    # 4·3·9+4 in the stem, 4·4·9+4 and 4+4 in each of two blocks, 5·4+5 in the head.
    assert summary.num_parameters == 112 + 2 * (148 + 8) + 25
    assert summary.storage_bytes == 4 * (summary.num_parameters + 2 * 8) + 2 * 8
    assert summary.format_version == 3
    assert "__torch__.torch.nn.modules.linear" in summary.modules


def test_the_gate_imports_no_torch(small_archive):
    program = (
        "import sys; from pathlib import Path; from archrepair_core.ingest.inspect import inspect_archive;"
        f"inspect_archive(Path({str(small_archive)!r})); assert not {{'torch', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_tied_weights_are_counted_once(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    network[2].weight = network[0].weight
    assert inspect_archive(scripted(network, tmp_path)).num_parameters == 16


def test_a_trained_resnet20_passes():
    if not RESNET20.exists():
        pytest.skip(f"{RESNET20} is not here; set ARCHREPAIR_DATA")
    summary = inspect_archive(RESNET20)
    assert (summary.num_parameters, summary.root_class) == (269_722, "__torch__.ResNet")


@pytest.mark.parametrize(
    ("module", "code", "words"),
    [
        (ReadsFile, "operator_not_allowed", ["aten::from_file", "ReadsFile.forward"]),
        (WritesFile, "operator_not_allowed", ["aten::save", "WritesFile.forward"]),
        (WritesWhileLoading, "unsafe_code", ["WritesWhileLoading.__setstate__", "aten::save"]),
        (Forks, "unsafe_code", ["fork", "Forks.forward"]),
        (UsesAClass, "unsafe_code", ["no Module, NamedTuple or Enum", "Scaling"]),
        (Hooked, "unsafe_code", ["peek", "Hooked"]),
        (Parameterless, "no_parameters", []),
    ],
)
def test_hostile_and_unsupported_models_are_refused_by_name_and_never_run(tmp_path, monkeypatch, module, code, words):
    path = scripted(module(), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert refusal(path, *words).code == f"model.{code}"
    assert os.listdir(tmp_path) == ["scripted.pt"]


def test_frozen_graphs_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "frozen.pt"
    torch.jit.freeze(torch.jit.script(float_network())).save(path)
    error = refusal(path, "0 parameters")
    assert error.code == "model.frozen_graph"
    assert "torch.jit.freeze" in error.hint
    assert "torch.jit.script(model)" in error.hint


def test_graphs_optimized_for_inference_are_refused_as_frozen(tmp_path):
    path = tmp_path / "optimized.pt"
    torch.jit.optimize_for_inference(torch.jit.script(float_network())).save(path)
    assert refusal(path).code == "model.frozen_graph"


def test_quantized_models_are_refused_as_such(tmp_path, small_archive, changed):
    text = b"class Small(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    return ops.quantized.linear(x)\n"
    error = refusal(changed({"code/__torch__/quantized.py": text}))
    assert error.code == "model.quantized"
    assert "float" in error.hint


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_save_writes_is_told_apart(tmp_path, legacy):
    path = tmp_path / "renamed.pt"
    torch.save(float_network().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    error = refusal(path)
    assert error.code == "model.pickle_not_torchscript"
    assert "torch.jit.script" in error.hint


def test_an_archive_inside_the_archive_is_refused(changed, small_archive):
    error = refusal(changed({"extra/nested.zip": small_archive.read_bytes()}), "inside")
    assert error.code == "model.unsafe_archive"


def test_other_zip_files_are_no_torchscript(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.zeros(3))
    assert refusal(path, "a.npy").code == "model.not_torchscript"
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("docs/data.pkl", "hello")
        archive.writestr("docs/constants.pkl", "hello")
    assert refusal(other, "constants.pkl").code == "model.not_torchscript"


def test_random_bytes_are_no_torchscript(tmp_path):
    path = tmp_path / "noise.pt"
    path.write_bytes(bytes(range(256)) * 10)
    assert refusal(path).code == "model.not_torchscript"


def test_no_grad_blocks_are_allowed(tmp_path):
    assert inspect_archive(scripted(SwitchesGradientsOff(), tmp_path)).num_parameters > 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"def f(x: Tensor) -> Tensor:\n  torch.set_grad_enabled(False)\n  return x\n", "aten::set_grad_enabled"),
        (b"class no_grad:\n  def __enter__(self) -> NoneType:\n    return None\n", "no_grad"),
        (b"def f(x: Tensor) -> Tensor:\n  with x as y:\n    return y\n", "with statement that names"),
    ],
)
def test_gradients_are_switched_by_the_class_of_torch_only(changed, text, word):
    refusal(changed({"code/__torch__/evil.py": text}), word)


def test_a_torchbind_attribute_is_refused_by_name(changed):
    text = b"class Evil(Module):\n  worker : __torch__.torch.classes.dist_rpc.WorkerInfo\n"
    assert (
        refusal(changed({"code/__torch__/evil.py": text}), "dist_rpc.WorkerInfo").code == "model.operator_not_allowed"
    )


@pytest.mark.parametrize(
    "name",
    ["code/__torch__/a-b.py", "code/os.py", "code/__torch__/3d.py", "data/0.bin", "data/x", "setup.py", "model.txt"],
)
def test_records_torch_does_not_write_are_refused(changed, name):
    assert refusal(changed({name: b""}), name).code == "model.unsafe_archive"


def test_extra_files_and_debug_records_are_tolerated(changed):
    inspect_archive(
        changed({"extra/labels.json": b"[]", "code/__torch__/x.py.debug_pkl": b"\x80", "data/999": b"junk"})
    )


def test_compressed_tensors_are_refused(small_archive, tmp_path):
    target = tmp_path / "deflated.pt"
    with zipfile.ZipFile(small_archive) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
        for entry in source.infolist():
            copy.writestr(entry.filename, source.read(entry))
    assert refusal(target, "compressed").code == "model.unsafe_archive"


def test_a_hostile_global_is_refused_by_name(changed):
    assert refusal(changed({"data.pkl": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."}), "os.system").code == (
        "model.unsafe_pickle"
    )


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4), lambda data: None])
def test_a_tensor_record_of_another_size_is_refused(changed, record, change):
    error = refusal(changed({"data/0": change(record("data/0"))}), "data/0")
    assert error.code == "model.tensor_geometry"


def test_an_attribute_of_another_type_than_declared_is_refused(changed, record):
    # `training` becomes None; torch itself would store it unchecked.
    old = b"training"
    data = record("data.pkl")
    position = data.index(b"\x89", data.index(old))
    error = refusal(
        changed({"data.pkl": data[:position] + b"N" + data[position + 1 :]}), "training", "NoneType", "bool"
    )
    assert error.code == "model.unsafe_pickle"


def test_an_object_of_an_undeclared_class_is_refused(changed, record):
    data = record("data.pkl").replace(b"linear\nLinear\n", b"linear\nLinxxx\n")
    assert refusal(changed({"data.pkl": data}), "Linxxx").code == "model.unsafe_pickle"


@pytest.mark.parametrize(
    ("version", "accepted"), [(b"2", 0), (b"3", 1), (b"6\n", 1), (b"10", 1), (b"11", 0), (b"x", 0)]
)
def test_format_versions_three_to_ten_are_read(changed, version, accepted):
    path = changed({"version": version})
    if accepted:
        assert inspect_archive(path).format_version == int(version)
    else:
        assert refusal(path, version.decode()).code == "model.format_not_supported"


def test_a_big_endian_archive_is_not_supported(changed):
    assert refusal(changed({"byteorder": b"big"})).code == "model.format_not_supported"


def test_limits_on_code_and_pickles_hold(small_archive):
    assert refusal(small_archive, sources_bytes=100).code == "model.archive_too_large"
    assert refusal(small_archive, source_bytes=100).code == "model.archive_too_large"
    assert refusal(small_archive, pickle_bytes=100).code == "model.archive_too_large"


def test_a_flipped_byte_in_a_tensor_is_corruption(small_archive, tmp_path):
    with zipfile.ZipFile(small_archive) as archive:
        content = archive.read("small/data/0")
    data = small_archive.read_bytes()
    position = data.index(content)
    path = tmp_path / "flipped.pt"
    path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    assert refusal(path, "data/0").code == "model.corrupt"


def test_memory_does_not_grow_with_tensor_records(tmp_path):
    """An 80 MB tensor is inspected by a process that grows by less than 30 MB."""
    path = tmp_path / "large.pt"
    torch.jit.script(nn.Linear(5_000, 4_000, bias=False)).save(path)
    program = (
        "from pathlib import Path; from archrepair_core.ingest.inspect import inspect_archive;"
        "from tests.resident_memory import resident_bytes; before = resident_bytes('VmHWM');"
        f"assert inspect_archive(Path({str(path)!r})).storage_bytes == 80_000_000;"
        "grown = resident_bytes('VmHWM') - before; assert grown < 30_000 * 1024, grown"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives_are_refused_or_still_valid(small_archive, tmp_path, data):
    content = bytearray(small_archive.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / "damaged.pt"
    path.write_bytes(content[:end])
    with contextlib.suppress(ModelError):
        assert inspect_archive(path).num_parameters > 0


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_records_behind_right_checksums_are_refused_or_valid(changed, record, data):
    """The attacker's case: the zip is flawless, its content is not."""
    names = ["data.pkl", "constants.pkl", "version", "code/__torch__/torch/nn/modules/linear.py"]
    name = data.draw(st.sampled_from(names))
    content = bytearray(record(name))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelError):
        assert inspect_archive(changed({name: bytes(content)})).num_parameters > 0
