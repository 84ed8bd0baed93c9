"""What ingest, surgery and export cost, as ratios measured side by side in one process per model.

- conversion: `ingest_model` + `verify_decompiled` against `torch.jit.load` + one forward of the same batch; the memory
  of each is what a fresh process needed above its start, divided by the size of the file.
- training: one forward and backward of the eager original against the rebuilt model, in train mode; above 1 the rebuilt
  one is faster.
- inference: the customer's file against the file we export with the architecture kept; above 1 ours is faster.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from archrepair_core.export import export_torchscript
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.tensors import return_freed_memory
from archrepair_core.ingest.verify import verify_decompiled

# Name: (build, image size, batch). Small enough that eight models fit into minutes on one core.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (torchvision.models.resnet18, 96, 8),
    "resnet50": (torchvision.models.resnet50, 224, 4),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 128, 8),
    "densenet121": (torchvision.models.densenet121, 96, 4),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 96, 8),
    "convnext_tiny": (torchvision.models.convnext_tiny, 96, 4),
    "swin_t": (torchvision.models.swin_t, 96, 4),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10), 224, 2),
}
KINDS = ("scripted", "traced")
MEASURES = ("load", "conversion", "speed")


def main() -> int:
    """Measure every model in a process of its own and print one Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--pairs", type=int, default=15, help="runs of each side per ratio (%(default)s)")
    parser.add_argument("--measure", nargs=3, metavar=("MEASURE", "MODEL", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, pairs=options.pairs)))
        return 0
    rows = []
    for name in options.models:
        for kind in KINDS:
            measured = {key: value for each in MEASURES for key, value in _own_process(each, name, kind, options)}
            rows.append({"model": name, "kind": kind, **measured})
            print(_line(rows[-1]) if len(rows) > 1 else f"{_HEAD}\n{_line(rows[-1])}", flush=True)
    print(f"\ngeometric means: training {_mean(rows, 'training'):.3f}, inference {_mean(rows, 'inference'):.3f}")
    print(f"torch {torch.__version__}, 1 thread, {options.pairs} interleaved pairs, median of each side")
    return 0


def _own_process(measure_name: str, name: str, kind: str, options: argparse.Namespace) -> Iterable[tuple[str, Any]]:
    command = [sys.executable, __file__, "--measure", measure_name, name, kind, "--pairs", str(options.pairs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1])).items()


def measure(measure_name: str, name: str, kind: str, *, pairs: int) -> dict[str, float]:
    """One of MEASURES for one model, scripted or traced."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, size, batch = MODELS[name]
    inputs = torch.randn(batch, 3, size, size)
    eager = build().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        compiled = torch.jit.script(eager) if kind == "scripted" else torch.jit.trace(eager, inputs, check_trace=False)
        torch.jit.save(compiled, str(path))
        del compiled
        if measure_name == "speed":
            return {**_conversion(path, inputs, pairs=3), **_speed(eager, path, inputs, pairs=pairs)}
        del eager
        run = {"load": load_and_run, "conversion": ingest_and_verify}[measure_name]
        return {f"{measure_name}_memory": _peak_megabytes(lambda: run(path, inputs)) / (path.stat().st_size / 2**20)}


def load_and_run(path: Path, inputs: torch.Tensor) -> None:
    """What reading the file costs anybody."""
    with torch.no_grad():
        torch.jit.load(str(path)).eval()(inputs)


def ingest_and_verify(path: Path, inputs: torch.Tensor) -> None:
    """What it costs us to know the model, and to know that we know it."""
    ingested = ingest_model(path, path.parent)
    verify_decompiled(ingested.reference, ingested.model, inputs)


def _conversion(path: Path, inputs: torch.Tensor, *, pairs: int) -> dict[str, float]:
    seconds = _interleaved(lambda: load_and_run(path, inputs), lambda: ingest_and_verify(path, inputs), pairs)
    return {"conversion": seconds[1] / seconds[0]}


def _peak_megabytes(run: Callable[[], object]) -> float:
    return_freed_memory()  # what building the model left behind must not be reused unseen
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    run()
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _speed(eager: nn.Module, path: Path, inputs: torch.Tensor, *, pairs: int) -> dict[str, float]:
    ingested = ingest_model(path, path.parent)
    exported = path.with_name("exported.pt")
    export_torchscript(ingested.model, exported, inputs=inputs, original=ingested.reference)
    files = [torch.jit.load(str(file)).eval() for file in (path, exported)]
    forwards = [_forward(module, inputs) for module in files]
    steps = [_training_step(module, inputs) for module in (eager.train(), ingested.model.train())]
    training, inference = (_interleaved(*runs, pairs) for runs in (steps, forwards))
    return {"training": training[0] / training[1], "inference": inference[0] / inference[1]}


def _forward(module: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return module(inputs)

    return run


def _training_step(module: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    def run() -> None:
        module.zero_grad()
        module(inputs).sum().backward()

    return run


def _interleaved(first: Callable[[], object], second: Callable[[], object], pairs: int) -> tuple[float, float]:
    """Median seconds of each; run in turns, the order changing, so that noise of the machine meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in (first, second, first, second):  # the JIT compiles in its first two runs
        run()
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 else (1, 0):
            started = time.perf_counter()
            (first, second)[side]()
            times[side].append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


_COLUMNS = ("conversion", "load_memory", "conversion_memory", "training", "inference")
_HEAD = f"| model | kind | {' | '.join(_COLUMNS)} |\n|{'---|' * (len(_COLUMNS) + 2)}"


def _line(row: dict[str, Any]) -> str:
    return f"| {row['model']} | {row['kind']} | " + " | ".join(f"{row[column]:.2f}" for column in _COLUMNS) + " |"


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return math.exp(statistics.fmean(math.log(row[column]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
