"""Rows of the coverage table, each measured in a process of its own: what one archive compiles stays in memory."""

import dataclasses
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import archrepair_core
from tests.coverage.entry import Kind
from tests.resident_memory import resident_bytes

TIMEOUT_SECONDS = 840
# Loaded once, before anything is computed; every row starts from there.
_PRELOADED = ["torch", "torchvision", "timm"]


@dataclass(frozen=True)
class Row:
    """One archive: its cells by column (passed, detail, seconds), and what they were measured with.

    Seconds are of the processor: the machine may have had other things to do.
    """

    name: str
    kind: Kind
    cells: dict[str, dict[str, Any]]
    num_parameters: int
    input_shapes: list[list[int]]
    seconds: float
    peak_megabytes: int
    torch_version: str
    code: str
    measured_at: str

    def failures(self) -> dict[str, str]:
        """The reason of each column that did not hold."""
        return {column: cell["detail"] for column, cell in self.cells.items() if cell["passed"] is False}


def code_digest() -> str:
    """Tells one state of the engine from another."""
    root = Path(archrepair_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def measure(name: str, kind: Kind) -> Row:
    """The row of one entry, from a fresh process; one that crashed or took too long is a row that says so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_here, args=(name, kind, sender))
    started = time.monotonic()
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(TIMEOUT_SECONDS) else _lost(name, kind, "took too long", started)
    except EOFError:
        process.join()
        return _lost(name, kind, f"the process ended with exit code {process.exitcode}", started)
    finally:
        process.kill()
        process.join()


def _measure_here(name: str, kind: Kind, sender: Connection) -> None:
    # Imported here: the test process itself only needs names.
    from tests.coverage.check import check
    from tests.coverage.registry import ENTRIES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    entry = ENTRIES[name]
    eager = entry.build()
    num_parameters = sum(parameter.numel() for parameter in eager.parameters())
    shapes = [list(item.shape) for item in entry.inputs(entry.batch_sizes[-1]) if isinstance(item, torch.Tensor)]
    with tempfile.TemporaryDirectory() as directory:
        cells = check(
            eager,
            entry.inputs,
            kind,
            directory=Path(directory),
            batch_sizes=entry.batch_sizes,
            tolerance=entry.tolerance,
            keeps_values=entry.keeps_values,
        )
    as_data = {column: dataclasses.asdict(cell) for column, cell in cells.items()}
    row = _row(name, kind, as_data, seconds=time.process_time())
    sender.send(dataclasses.replace(row, num_parameters=num_parameters, input_shapes=shapes))


def _lost(name: str, kind: Kind, why: str, started: float) -> Row:
    seconds = time.monotonic() - started
    return _row(name, kind, {"archive": {"passed": False, "detail": why, "seconds": seconds}}, seconds=seconds)


def _row(name: str, kind: Kind, cells: dict[str, dict[str, Any]], *, seconds: float) -> Row:
    return Row(
        name=name,
        kind=kind,
        cells=cells,
        num_parameters=0,
        input_shapes=[],
        seconds=round(seconds, 1),
        peak_megabytes=resident_bytes("VmHWM") // 2**20,
        torch_version=torch.__version__,
        code=code_digest(),
        measured_at=time.strftime("%Y-%m-%d"),
    )


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines; a line that a killed run left half written is passed over."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield Row(**json.loads(line))
        except json.JSONDecodeError:
            continue


def append_row(path: Path, row: Row) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(dataclasses.asdict(row)) + "\n")
