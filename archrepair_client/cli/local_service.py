"""`archrepair up`, `demo` and `doctor`: a service on this machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from archrepair_client.demo import run_demo
from archrepair_client.doctor import NoAnswer, run_doctor
from archrepair_client.up import CannotStart, serve

DEFAULT_STATE_DIR = Path("~/.archrepair")
StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="ARCHREPAIR_STATE_DIR", help="Database, files, key and logs live here.")
]
Host = Annotated[str, typer.Option(envvar="ARCHREPAIR_HOST", help="Address to listen on.")]


def up(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    port: Annotated[int, typer.Option(envvar="ARCHREPAIR_PORT", min=0, max=65535, help="0 takes any free one.")] = 8000,
    host: Host = "127.0.0.1",
) -> None:
    """Start the whole service on this machine: broker, worker and gateway. Ctrl-C stops it."""
    try:
        serve(state_dir=state_dir, host=host, port=port)
    except CannotStart as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"archrepair up: {error}", markup=False)
        raise typer.Exit(1) from None


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where models, images and report go.")] = Path("demo-output"),
) -> None:
    """Repair a faulty model end to end, over HTTP. Exit code 0 only when the verdict is `pass`."""
    passed = run_demo(directory, console=Console(soft_wrap=True))
    raise typer.Exit(0 if passed else 1)


def doctor(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    port: Annotated[int, typer.Option(envvar="ARCHREPAIR_PORT", min=1, max=65535)] = 8000,
    host: Host = "127.0.0.1",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check every part of the deployment: a line each, and what to do. Exit code 0 only when nothing failed."""
    try:
        well = run_doctor(state_dir=state_dir, host=host, port=port, as_json=as_json)
    except NoAnswer as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"archrepair doctor: {error}", markup=False)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if well else 1)
