import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.inspect import inspect_archive
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.verify import verify_decompiled
from archrepair_core.ingest.versions import check_torchscript_version, torchscript_writer


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))


class Scales(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Divides(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        counts = torch.div((x * 10).to(torch.int64), torch.tensor(3))
        return counts.to(torch.float32) * self.weight


class DividesInPlace(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).div_(3)


class Fills(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + torch.full([3], 7)


class Spaces(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + torch.linspace(0, 1, 3)


class Activates(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch._C._nn.gelu(x * self.weight)


def aged(model: nn.Module, path: Path, version: int) -> Path:
    """The model's archive as a torch of that operator-set version would have left it."""
    now = path.with_name("now.pt")
    torch.jit.save(torch.jit.script(model.eval()), now)
    with zipfile.ZipFile(now) as source, zipfile.ZipFile(path, "w") as copy:
        # From version 6 on, the record lies in another folder.
        copy.writestr("old/.data/version" if version >= 6 else "old/version", f"{version}\n")
        for entry in source.infolist():
            data, name = source.read(entry), entry.filename.partition("/")[2]
            if name in ("version", ".data/version"):
                continue
            if entry.filename.endswith(".py"):
                # Operators that have gained arguments since were written without them.
                data = data.replace(b", approximate='none'", b"").replace(b', approximate="none"', b"")
            copy.writestr(f"old/{name}", data)
    return path


@pytest.mark.parametrize("version", [3, 4, 5, 7, 8, 9, 10])
@pytest.mark.parametrize("model", [Divides, DividesInPlace, Fills, Spaces, Activates])
def test_an_old_archive_means_what_it_meant_when_it_was_written(model, version, tmp_path):
    path = aged(model(), tmp_path / "old.pt", version)
    archived = torch.jit.load(path)
    ingested = ingest_model(path, tmp_path)
    inputs = torch.tensor([[0.75, 0.5, 0.95], [1.0, -0.5, 0.25]])
    verify_decompiled(ingested.reference, ingested.model, inputs)
    assert torch.equal(ingested.model(inputs), archived(inputs))
    assert ingested.written_by == torchscript_writer(version)


def test_integers_were_divided_with_floor_before_version_4(tmp_path):
    inputs = torch.full((1, 3), 0.75)
    answers = {
        version: ingest_model(aged(Divides(), tmp_path / "old.pt", version), tmp_path).model(inputs).tolist()
        for version in (3, 4)
    }
    assert answers[3] == [[2.0, 4.0, 6.0]]
    assert answers[4] != answers[3]


def test_a_newer_archive_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ModelError, match="11") as caught:
        inspect_archive(aged(Activates(), tmp_path / "new.pt", 11))
    assert caught.value.code == "model.format_not_supported"
    assert "upgrade the service" in caught.value.hint


@pytest.mark.parametrize("text", [b"", b"2", b"-3", b"0x3", b"3.0", b"9" * 40, b"\xb2"])
def test_what_is_no_supported_version_is_refused(text):
    with pytest.raises(ModelError, match="Format version"):
        check_torchscript_version(text)


@pytest.mark.parametrize("model", [Scales, Divides, Fills, Spaces, Activates])
def test_what_is_said_of_the_writer_holds_for_this_torch(model, tmp_path):
    torch.jit.save(torch.jit.script(model()), tmp_path / "now.pt")
    oldest = re.fullmatch(r"torch (\d+)\.(\d+) or newer", inspect_archive(tmp_path / "now.pt").written_by)
    assert tuple(map(int, oldest.groups())) <= tuple(map(int, torch.__version__.split(".")[:2]))
