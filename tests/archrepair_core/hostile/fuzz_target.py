"""A process in the place of the engine: loads, rebuilds and runs damaged archives, one after the other, in the sandbox.

Speaks the engine's protocol: `ready`, then a `progress` before and after each archive; `step` is the archive's number,
the message after it how it ended. What is no ModelError leaves a traceback in the log.
"""

import json
import sys
import traceback
import warnings
from pathlib import Path

import torch

from archrepair_core.errors import ModelError
from archrepair_core.events import EventPipe, open_event_pipe
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.verify import verify_decompiled
from archrepair_core.sandbox.sandbox import describe_layers, enter_sandbox, parse_mode
from tests.archrepair_core.hostile.mutations import mutated
from tests.archrepair_core.hostile.seeds import EXAMPLE, seed_archives


def main(mode: str, inputs: str, work: str, out: str) -> None:
    """Try the numbers of the request; the archives are made here, from the number alone."""
    events = open_event_pipe()
    warnings.simplefilter("ignore")
    seeds = seed_archives()  # before the sandbox closes the files torch reads the source from
    layers = enter_sandbox(parse_mode(mode), readable=[Path(inputs)], writable=[Path(work), Path(out)])
    sys.stderr.write(describe_layers(layers) + "\n")
    events.send("ready")
    request = json.loads(sys.stdin.buffer.readline())
    for number in range(request["first"], request["stop"]):
        say(events, number, "")
        say(events, number, try_archive(mutated(seeds[number % len(seeds)], number), Path(work), number))
    events.send("result", result={}, verdict="pass", artifacts=[])


def say(events: EventPipe, number: int, message: str) -> None:
    events.send("progress", phase="ingesting", percent=0, message=message, step=number)


def try_archive(data: bytes, work: Path, number: int) -> str:
    """How it ended: `refused`, `agrees`, or the name of an exception that should not have come out."""
    path = work / "upload.pt"
    path.write_bytes(data)
    try:
        ingested = ingest_model(path, work)
        with torch.no_grad():
            verify_decompiled(ingested.reference, ingested.model, EXAMPLE)
    except ModelError:
        return "refused"
    except Exception as error:  # noqa: BLE001  what this is looking for
        sys.stderr.write(f"{number}:\n{traceback.format_exc()}\n")
        return type(error).__name__
    return "agrees"


if __name__ == "__main__":
    main(*sys.argv[1:])
