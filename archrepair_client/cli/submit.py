"""`archrepair repair`, `localize` and `evaluate`: submit a job, and with --watch see it to its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from archrepair_client.cli.follow import followed
from archrepair_client.cli.local_engine import run_locally
from archrepair_client.cli.options import AsJson, Metadata, Quiet, Timeout, connected, pairs_of, seconds_of
from archrepair_client.display import Display
from archrepair_client.errors import BadInput
from archrepair_client.output import JOB_FIELDS, Output
from archrepair_client.specs import Submission, read_spec, submission_of, with_values

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A TorchScript or .pt2 file, or mdl_….")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        metavar="[NAME=]SOURCE",
        help="A file or reference. NAME is repair, test, validation, replay or regression; when not said, repair, "
        "and test for an evaluation. Repeatable.",
    ),
]
SpecFile = Annotated[
    Path | None, typer.Option("--spec", "-s", help="JSON, TOML or YAML; paths in it are relative to it.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="A field of the spec, e.g. repair.budget_seconds=60; repeatable."
    ),
]
Gates = Annotated[
    list[str] | None, typer.Option("--gate", "-g", help='e.g. "test.accuracy >= before + 0.01"; repeatable.')
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Wait, fetch the files, and exit as the verdict says.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where files go, with --watch or --local.")]
Local = Annotated[bool, typer.Option("--local", help="Run the engine here, without a service.")]
DEFAULT_OUT = Path("archrepair-out")
# The set a kind of job cannot do without, which is meant by --data without a name.
MAIN_SET = {"evaluate": "test"}


def repair(
    model: ModelArgument,
    data: Data = None,
    spec: SpecFile = None,
    gate: Gates = None,
    assignments: Assignments = None,
    metadata: Metadata = None,
    watch: Watch = False,
    local: Local = False,
    out: Out = DEFAULT_OUT,
    timeout: Timeout = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Repair a model on the inputs it fails on."""
    asked = submission(model, data, spec, assignments, kind="repair", gates=gate, metadata=metadata)
    if local:
        raise typer.Exit(run_locally(asked, out))
    _send(asked, Output(as_json, quiet), watch=watch, out=out, timeout=timeout)


def localize(
    model: ModelArgument,
    data: Data = None,
    spec: SpecFile = None,
    assignments: Assignments = None,
    metadata: Metadata = None,
    watch: Watch = False,
    local: Local = False,
    out: Out = DEFAULT_OUT,
    timeout: Timeout = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Rank the blocks of a model by how much they are to blame, and change nothing."""
    asked = submission(model, data, spec, assignments, kind="localize", metadata=metadata)
    if local:
        raise typer.Exit(run_locally(asked, out))
    _send(asked, Output(as_json, quiet), watch=watch, out=out, timeout=timeout)


def evaluate(
    model: ModelArgument,
    data: Data = None,
    spec: SpecFile = None,
    gate: Gates = None,
    assignments: Assignments = None,
    metadata: Metadata = None,
    watch: Watch = False,
    local: Local = False,
    out: Out = DEFAULT_OUT,
    timeout: Timeout = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model, and change nothing; data without a name is the test set."""
    asked = submission(model, data, spec, assignments, kind="evaluate", gates=gate, metadata=metadata)
    if local:
        raise typer.Exit(run_locally(asked, out))
    _send(asked, Output(as_json, quiet), watch=watch, out=out, timeout=timeout)


def submission(
    model: str | None,
    data: list[str] | None,
    spec: Path | None,
    assignments: list[str] | None,
    *,
    kind: str | None = None,
    gates: list[str] | None = None,
    metadata: list[str] | None = None,
) -> Submission:
    """What the options ask for: the file first, then what was said beside it. Raises BadInput."""
    asked: dict[str, Any] = read_spec(spec) if spec is not None else {}
    if kind is not None:
        asked["kind"] = kind
    if gates:
        asked["gates"] = gates
    if pairs := pairs_of(metadata, option="--metadata"):
        asked["metadata"] = {**asked.get("metadata", {}), **pairs}
    asked = with_values(asked, assignments or [])
    main_set = MAIN_SET.get(asked.get("kind", "repair"), "repair")
    sources = _sources(data, unnamed=main_set)
    made = submission_of(asked, model=model, datasets=sources, relative_to=spec.parent if spec else None)
    if main_set not in made.spec.get("datasets", {}):
        raise BadInput(f"no data: say --data FILE, or `datasets.{main_set}` in the spec")
    return made


def _sources(data: list[str] | None, *, unnamed: str) -> Mapping[str, str]:
    sources: dict[str, str] = {}
    for item in data or []:
        name, separator, source = item.partition("=")
        if not separator or not name.isidentifier():
            name, source = unnamed, item
        if name in sources:
            raise BadInput(f"--data names {name} twice: {sources[name]!r} and {source!r}")
        sources[name] = source
    return sources


def _send(asked: Submission, output: Output, *, watch: bool, out: Path, timeout: str | None) -> None:
    limit = seconds_of(timeout)
    with connected() as client:
        with Display(quiet=output.quiet) as display:
            job = client.jobs.submit(asked, on_transfer=display.transfer)
        if watch:
            raise typer.Exit(followed(client, job.id, output, out=out, timeout_seconds=limit))
    output.item(job, JOB_FIELDS)
    output.note(f"`archrepair jobs watch {job.id}` follows it")
