"""`archrepair ci`: one step of a pipeline, with an exit code for every ending."""

import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from archrepair_client.ci.run import Policy, run_ci
from archrepair_client.cli.options import Metadata, connected, seconds_of
from archrepair_client.cli.submit import Assignments, Data, Gates, submission
from archrepair_client.exits import MEANINGS

CODES = "\n\n".join(f"{code}: {meaning}" for code, meaning in MEANINGS.items())


class Leave(StrEnum):
    """What becomes of a job nobody waits for any more."""

    cancel = "cancel"
    detach = "detach"


class Count(StrEnum):
    """How an ending counts that is neither good nor bad."""

    passed = "pass"
    failed = "fail"


def ci(
    model: Annotated[str, typer.Option("--model", help="A TorchScript or .pt2 file, or mdl_….")],
    spec: Annotated[Path | None, typer.Option("--spec", "-s", help="JSON, TOML or YAML.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where model and reports go.")] = Path("archrepair-out"),
    data: Data = None,
    gate: Gates = None,
    assignments: Assignments = None,
    metadata: Metadata = None,
    timeout: Annotated[str, typer.Option(help="Stop waiting after so long: 90, 55m, 2h.")] = "55m",
    on_timeout: Annotated[
        Leave, typer.Option(help="What becomes of the job; a rerun finds a detached one.")
    ] = Leave.detach,
    on_interrupt: Annotated[
        Leave | None, typer.Option(help="The same, for Ctrl-C and SIGTERM; by default cancel where $CI is set.")
    ] = None,
    inconclusive: Annotated[Count, typer.Option(help="How a verdict counts that the data cannot tell.")] = Count.failed,
    platform_failure: Annotated[Count, typer.Option(help="How a service counts that fails.")] = Count.failed,
) -> None:
    """Submit, wait, fetch the files, and exit as a gate: see EXIT CODES below.

    A rerun of the same pipeline takes up the job of the run before, unless that has failed.
    """
    left = on_interrupt or (Leave.cancel if os.environ.get("CI") else Leave.detach)
    policy = Policy(
        timeout_seconds=seconds_of(timeout) or 0.0,
        cancel_on_timeout=on_timeout is Leave.cancel,
        cancel_on_interrupt=left is Leave.cancel,
        inconclusive_passes=inconclusive is Count.passed,
        platform_failure_passes=platform_failure is Count.passed,
    )
    make = partial(submission, model, data, spec, assignments, gates=gate, metadata=metadata)
    raise typer.Exit(run_ci(make, connected, out=out, policy=policy, environment=os.environ))


ci.__doc__ = f"{ci.__doc__}\n\nEXIT CODES\n\n{CODES}"
