from pathlib import Path

import pytest
import torch
from torch import nn

from archrepair_core.errors import ModelError
from archrepair_core.facts import Inspection, inspect_model


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Residual(), Residual())
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer1(self.stem(x)).mean((2, 3)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.script(Network()), str(tmp_path / "upload.pt"))
    return tmp_path / "upload.pt"


def inspected(path: Path, tmp_path: Path, shape: tuple[int, ...] | None = None) -> Inspection:
    (tmp_path / "work").mkdir()
    return inspect_model(path, tmp_path / "work", input_shape=shape)


def test_the_blocks_of_a_file_are_found_on_a_guessed_input(saved: Path, tmp_path: Path):
    found = inspected(saved, tmp_path).to_json()
    num_parameters = sum(parameter.numel() for parameter in Network().parameters())
    assert (found["format"], found["num_parameters"], found["blocks_unknown"]) == ("torchscript", num_parameters, None)
    assert (found["input_shape"], found["input_shape_source"]) == ([3, 32, 32], "guessed")
    rows = [(row["name"], row["level"], row["stage"], row["input_shape"]) for row in found["blocks"]]
    assert rows == [
        ("layer1", "stage", None, (4, 32, 32)),
        ("layer1.0", "block", "layer1", (4, 32, 32)),
        ("layer1.1", "block", "layer1", (4, 32, 32)),
    ]
    assert found["blocks"][1]["macs"] == 2 * 4 * 4 * 9 * 32 * 32


def test_a_given_shape_is_taken_as_it_is(saved: Path, tmp_path: Path):
    found = inspected(saved, tmp_path, (3, 8, 10))
    assert (found.input_shape, found.input_shape_source) == ((3, 8, 10), "given")
    assert found.blocks[0].input_shape == (4, 8, 10)


def test_an_exported_program_knows_its_input(tmp_path: Path):
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Network().eval(), (torch.randn(2, 3, 12, 10),), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(tmp_path / "upload.pt2"))
    found = inspected(tmp_path / "upload.pt2", tmp_path)
    assert (found.format, found.input_shape, found.input_shape_source) == ("torch_export", (3, 12, 10), "file")
    assert found.written_by.startswith("torch 2.")
    assert [block.name for block in found.blocks] == ["layer1", "layer1.0", "layer1.1"]


def test_a_given_shape_that_does_not_fit_costs_the_blocks_but_not_the_model(saved: Path, tmp_path: Path):
    found = inspected(saved, tmp_path, (1, 8, 8)).to_json()
    assert (found["blocks"], found["input_shape"], found["input_shape_source"]) == ([], [1, 8, 8], "given")
    assert found["num_parameters"] > 0
    assert found["blocks_unknown"]["code"] == "model.fails_on_inputs"
    assert "[1, 1, 8, 8]" in found["blocks_unknown"]["detail"]


def test_a_shape_too_large_to_try_costs_the_blocks_but_not_the_model(saved: Path, tmp_path: Path):
    found = inspected(saved, tmp_path, (3, 4096, 4096)).to_json()
    assert (found["blocks"], found["input_shape"]) == ([], [3, 4096, 4096])
    assert found["blocks_unknown"]["code"] == "model.input_shape_too_large"
    assert "3×4096×4096" in found["blocks_unknown"]["detail"]


def test_a_model_of_several_inputs_is_refused_as_every_job_would_refuse_it(tmp_path: Path):
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 20))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x + y, self.weight)

    torch.jit.save(torch.jit.script(TwoInputs()), str(tmp_path / "upload.pt"))
    with pytest.raises(ModelError) as raised:
        inspected(tmp_path / "upload.pt", tmp_path)
    assert raised.value.code == "model.needs_several_inputs"


def test_a_flat_model_is_shown_with_the_runs_a_job_would_repair(tmp_path: Path):
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(6, 20)), nn.Parameter(torch.randn(5, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(torch.relu(torch.nn.functional.linear(x, self.first)), self.second)

    torch.jit.save(torch.jit.script(Flat()), str(tmp_path / "upload.pt"))
    found = inspected(tmp_path / "upload.pt", tmp_path)
    assert (found.input_shape, found.blocks_unknown) == ((20,), None)
    assert len(found.blocks) == 2


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "upload.pt").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelError):
        inspected(tmp_path / "upload.pt", tmp_path)
