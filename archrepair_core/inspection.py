"""`python -m archrepair_core.inspection model.pt`: the tree of a model's blocks; no service needed.

The model is opened in an engine process of its own, behind the same sandbox as in the service. Exit codes: 0, or 2 for
a model that cannot be repaired.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DONE, ERROR = 0, 2
STANDBY = (sys.executable, "-P", "-m", "archrepair_core.standby")


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is in a model file."""
    options = _parse_command_line(argv)
    found, problem = inspect_in_process(options.model.resolve(), input_shape=options.input_shape)
    if found is None:
        hint = f"hint: {problem['hint']}\n" if problem.get("hint") else ""
        sys.stderr.write(f"{problem['code']}: {problem['detail']}\n{hint}")
        return ERROR
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if options.json else block_tree(found))
    return DONE


def inspect_in_process(
    model: Path, *, input_shape: Sequence[int] | None = None
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(facts, {}) as `facts.Inspection.to_json` writes them, or (None, problem)."""
    mode = os.environ.get("ARCHREPAIR_ENGINE_SANDBOX", "best_effort")
    with tempfile.TemporaryDirectory(prefix="archrepair-") as directory:
        work, out = Path(directory, "work"), Path(directory, "out")
        work.mkdir()
        out.mkdir()
        spec = {"kind": "inspect", "input_shape": input_shape}
        request = {"model": str(model), "datasets": {}, "spec": spec, "work_dir": str(work), "out_dir": str(out)}
        engine = subprocess.run(
            (*STANDBY, mode, str(model), str(work), str(out)),
            input=json.dumps(request).encode() + b"\n",
            capture_output=True,
        )
    events = {event["type"]: event for event in map(json.loads, engine.stdout.splitlines())}
    if "result" in events:
        return {name: value for name, value in events["model"].items() if name != "type"}, {}
    crashed = {
        "code": "platform.engine_failed",
        "detail": f"the engine process ended with code {engine.returncode}",
        "hint": engine.stderr.decode(errors="replace")[-2000:],
    }
    return None, events.get("error", crashed)


def _parse_command_line(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m archrepair_core.inspection", description="Print a model's blocks.")
    parser.add_argument("model", type=_file, help="the model file")
    parser.add_argument("--input-shape", type=_shape, help="of one input, e.g. 3,224,224; without it, it is guessed")
    parser.add_argument("--json", action="store_true", help="as JSON instead of a table")
    return parser.parse_args(argv)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return Path(text)


def _shape(text: str) -> list[int]:
    sizes = [item.strip() for item in text.strip("[]() ").split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 3,224,224")
    return list(map(int, sizes))


def block_tree(found: Mapping[str, Any]) -> str:
    """The blocks as an indented table for people."""
    shape = f"input {_sizes(found['input_shape'])} ({found['input_shape_source']})" if found["input_shape"] else ""
    facts = [found["format"], found.get("written_by") or "", f"{found['num_parameters']:,} parameters", shape]
    head = ", ".join(filter(None, facts)) + "\n"
    if reason := found["blocks_unknown"]:
        return f"{head}blocks unknown: {reason['detail']}\nhint: {reason['hint']}\n"
    rows = [("block", "kind", "input", "output", "parameters", "MACs", "time")]
    stages = {block["name"]: block["stage"] for block in found["blocks"]}
    rows += [_row(block, stages) for block in found["blocks"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return head + "".join(_line(row, widths) for row in rows)


def _row(block: Mapping[str, Any], stages: Mapping[str, str | None]) -> tuple[str, str, str, str, str, str, str]:
    depth, stage = 0, block["stage"]
    while stage is not None:
        depth, stage = depth + 1, stages[stage]
    return (
        "  " * depth + block["name"],
        block["kind"],
        _sizes(block["input_shape"]),
        _sizes(block["output_shape"]),
        f"{block['num_params']:,}",
        f"{block['macs']:,}",
        f"{block['latency_share']:.1%}",
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    words, numbers = row[:4], row[4:]
    cells = [cell.ljust(width) for cell, width in zip(words, widths[:4], strict=True)]
    cells += [cell.rjust(width) for cell, width in zip(numbers, widths[4:], strict=True)]
    return "  ".join(cells).rstrip() + "\n"


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


if __name__ == "__main__":
    sys.exit(main())
