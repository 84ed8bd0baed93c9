"""Models as the engine gets them: saved as TorchScript and loaded together with their compilation unit."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.demo.digits import make_case
from archrepair_core.ingest.model import ingest_model

Archive = tuple[torch.jit.ScriptModule, torch._C.CompilationUnit]


def _load(path: Path) -> Archive:
    unit = torch._C.CompilationUnit()
    return torch.jit._recursive.wrap_cpp_module(
        torch._C.import_ir_module(unit, str(path), torch.device("cpu"), {}, False)
    ), unit


@pytest.fixture
def load_pair() -> Callable[[Path], Archive]:
    return _load


@pytest.fixture
def archived(tmp_path: Path) -> Callable[..., Archive]:
    """`archived(model)` scripts it, `archived(model, example)` traces it; then saved and loaded back."""

    def save_and_load(model: nn.Module, example: Tensor | None = None) -> Archive:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            if example is None:
                compiled = torch.jit.script(model)
            else:
                # Attention takes another path without gradients, so a trace need not repeat itself.
                compiled = torch.jit.trace(model, example, check_trace=False, strict=False)
        torch.jit.save(compiled, str(tmp_path / "model.pt"))
        return _load(tmp_path / "model.pt")

    return save_and_load


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's case: a network that learned sharp digits, and blurred ones it fails on."""
    directory = tmp_path_factory.mktemp("digits")
    make_case(directory, seed=0)
    return directory


@pytest.fixture(scope="session")
def damaged_path(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network with noise on all kernels of its block `blocks.1`."""
    directory = tmp_path_factory.mktemp("damaged")
    net = ingest_model(digits / "model.pt", directory).model.eval()
    with torch.no_grad():
        for weight in net.get_submodule("blocks.1").parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 1.5 * weight.std())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), str(directory / "damaged.pt"))
    return directory / "damaged.pt"


@pytest.fixture(scope="session")
def resnet20_path() -> Path:
    """A real network trained by others; see the data directory's README."""
    directory = Path(os.environ.get("ARCHREPAIR_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    path = directory / "resnet20-cifar10.torchscript.pt"
    if not path.exists():
        pytest.skip(f"no {path.name}: set ARCHREPAIR_DATA to the directory that holds it")
    return path
