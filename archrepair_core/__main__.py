"""`python -m archrepair_core model.pt data.npz`: a repair without the service; `--kind evaluate` only measures.

`torchrun --nproc-per-node N -m archrepair_core …` trains with N processes, on N shares of every batch.

Exit codes: 0 the gates passed (or there were none to pass), 1 the model was not made better, 2 an error.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from archrepair_core.errors import ArchRepairError, DatasetError, SpecError
from archrepair_core.sandbox.sandbox import Mode, describe_layers, enter_sandbox, parse_mode
from archrepair_core.spec import REQUIRED_DATA, SPLITS, RepairSpec

if TYPE_CHECKING:
    from archrepair_core.progress import Progress
    from archrepair_core.request import RepairOutcome

PASSED, NOT_BETTER, ERROR = 0, 1, 2


def main(argv: Sequence[str] | None = None, *, sandbox: str = "off") -> int:
    """Repair the model of the command line and say in words what came out. A sandbox binds this process for good."""
    options = parse_command_line(argv)
    try:
        outcome = repair(options, parse_mode(sandbox))
    except ArchRepairError as error:
        sys.stderr.write(f"{error.code}: {error.detail}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return ERROR
    except Exception:  # noqa: BLE001  the border of the process: Python's own exit code 1 means "not better" here
        traceback.print_exc()
        return ERROR
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(summary(outcome, options.out))
    return exit_code(outcome.result, outcome.verdict)


def parse_command_line(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; argparse exits with 2 on wrong ones, which is our code for errors too."""
    parser = argparse.ArgumentParser(prog="python -m archrepair_core", description="Repair a TorchScript classifier.")
    parser.add_argument("model", type=Path, help="TorchScript file")
    parser.add_argument(
        "data",
        type=Path,
        help="labelled inputs it fails on, known to the spec as upload:repair; in an evaluation as upload:test",
    )
    parser.add_argument("--kind", choices=tuple(REQUIRED_DATA), help="in place of the spec's; without either, repair")
    parser.add_argument("--spec", type=Path, help="RepairSpec as JSON; without it every knob is auto")
    parser.add_argument("--out", type=Path, default=Path("archrepair-out"), help="where the artifacts go (%(default)s)")
    parser.add_argument("--dataset", metavar="NAME=PATH", action="append", default=[], help="the file of upload:NAME")
    return parser.parse_args(argv)


def repair(options: argparse.Namespace, sandbox: Mode = "off") -> "RepairOutcome":
    """Check everything that can be checked before torch is imported, which takes seconds; then repair."""
    asked = read_asked(options.spec) | ({"kind": options.kind} if options.kind else {})
    # Of a kind there is none of, the spec is refused below.
    main_role, _ = REQUIRED_DATA.get(str(asked.get("kind")), REQUIRED_DATA["repair"])
    datasets = {main_role: options.data, **dict(named_path(pair) for pair in options.dataset)}
    spec = check_asked(asked, datasets)
    for path in (options.model, *datasets.values()):
        if not path.is_file():
            raise DatasetError("missing_file", f"{path} is not a file", hint="check the path on the command line")
    options.out.mkdir(parents=True, exist_ok=True)
    model, out = options.model.resolve(), options.out.resolve()
    files = {f"upload:{name}": path.resolve() for name, path in datasets.items()}
    if num_processes_asked() > 1:
        return repair_together(model, files, spec, out, sandbox)
    # Made in the output folder: once in the sandbox, nothing outside it could be removed again.
    with tempfile.TemporaryDirectory(prefix="work-", dir=out) as work_dir:
        if sandbox != "off":
            layers = enter_sandbox(sandbox, readable=[model, *files.values()], writable=[Path(work_dir), out])
            sys.stderr.write(f"sandbox: {describe_layers(layers)}\n")
        from archrepair_core.repair import repair_model
        from archrepair_core.request import RepairRequest

        return repair_model(RepairRequest(model, files, spec, Path(work_dir), out), show_progress)


def num_processes_asked() -> int:
    """How many processes `torchrun` started for this repair."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def repair_together(
    model: Path, files: Mapping[str, Path], spec: RepairSpec, out: Path, sandbox: Mode
) -> "RepairOutcome":
    """As one of the processes `torchrun` started: all do the same, the first one writes.

    They talk over sockets, which the sandbox closes; so this is for models one trusts.
    """
    if sandbox == "required":
        detail = "several processes talk over sockets, which a required sandbox closes"
        raise SpecError(
            "several_processes", detail, hint="start without torchrun, or set ARCHREPAIR_ENGINE_SANDBOX=off"
        )
    from archrepair_core.processes import joined_processes
    from archrepair_core.repair import repair_model
    from archrepair_core.request import RepairRequest

    with joined_processes() as number, tempfile.TemporaryDirectory(prefix="work-", dir=out) as work_dir:
        writes = number == 0
        written = out if writes else Path(tempfile.mkdtemp(dir=work_dir))
        request = RepairRequest(model, files, spec, Path(work_dir), written)
        return repair_model(request, show_progress if writes else lambda _progress: None)


def named_path(pair: str) -> tuple[str, Path]:
    """Split NAME=PATH."""
    name, separator, path = pair.partition("=")
    if not (name and separator and path):
        detail = f"--dataset {pair!r} is not NAME=PATH"
        raise SpecError("bad_dataset_option", detail, hint="e.g. --dataset test=test.npz")
    return name, Path(path)


def read_asked(path: Path | None) -> dict[str, Any]:
    """What the file says, a JSON object not yet checked; an empty one without a file."""
    try:
        asked = json.loads(path.read_text("utf-8")) if path else {}
    except OSError as error:
        detail = f"the spec {path} cannot be read: {error.strerror}"
        raise SpecError("unreadable", detail, hint="check --spec") from error
    except ValueError as error:
        raise SpecError("invalid", f"the spec {path} is not a JSON object: {error}", hint="check --spec") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("datasets") or {}, dict):
        detail = f"the spec {path} is not a JSON object, or its datasets are none"
        raise SpecError("invalid", detail, hint="check --spec")
    return asked


def check_asked(asked: Mapping[str, Any], datasets: Mapping[str, Path]) -> RepairSpec:
    """The spec, with `upload:NAME` for every given split it does not mention."""
    references = dict(asked.get("datasets") or {})
    for name in set(datasets) & set(SPLITS):
        references[name] = references.get(name) or f"upload:{name}"
    try:
        spec = RepairSpec.model_validate({**asked, "datasets": references})
    except ValidationError as error:
        first = error.errors()[0]
        where = "/" + "/".join(map(str, first["loc"]))
        detail = f"{where}: {first['msg']}, got {first['input']!r}"
        raise SpecError("invalid", detail, hint="the fields of RepairSpec say what is allowed there") from error
    _check_references(spec, datasets)
    return spec


def _check_references(spec: RepairSpec, datasets: Mapping[str, Path]) -> None:
    references = {f"datasets.{split}": getattr(spec.datasets, split) for split in SPLITS}
    for field, reference in {**references, "model.reference": spec.model.reference}.items():
        name = (reference or "").removeprefix("upload:")
        if reference and reference.startswith("upload:") and name not in datasets:
            detail = f"{field} is {reference!r}, but no file was given for it"
            raise SpecError("missing_upload", detail, hint=f"add --dataset {name}=PATH")


def show_progress(progress: "Progress") -> None:
    """One line per step on stderr, so that stdout holds the summary alone."""
    sys.stderr.write(f"{progress.percent:5.1f}%  {progress.phase:<10}  {progress.message}\n")


def summary(outcome: "RepairOutcome", out_dir: Path) -> str:
    """What came out, for a person: the outcome, each gate with its reason, the files."""
    result = outcome.result
    lines = [f"{result['outcome']}, verdict {outcome.verdict}: {result.get('reason', '')}".rstrip(": ")]
    lines += [f"  {gate['state']:<13} {gate['expression']}  ({gate['reason']})" for gate in result.get("gates", [])]
    lines += [f"  {artifact.kind:<13} {out_dir / artifact.name}" for artifact in outcome.artifacts]
    return "\n".join(lines) + "\n"


def exit_code(result: Mapping[str, Any], verdict: str) -> int:
    """0 only for a repair whose gates passed; localizations, and evaluations without gates, succeed by ending."""
    passing = {"localized": ("not_evaluated",), "evaluated": ("pass", "not_evaluated"), "repaired": ("pass",)}
    return PASSED if verdict in passing.get(result["outcome"], ()) else NOT_BETTER


if __name__ == "__main__":
    sys.exit(main(sandbox=os.environ.get("ARCHREPAIR_ENGINE_SANDBOX", "best_effort")))
