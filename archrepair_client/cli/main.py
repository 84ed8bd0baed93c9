"""The command line as a whole: its groups, what comes before a command, and how errors end it."""

import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from archrepair_client.cli import ci, datasets, jobs, keys, local_service, login, models, report, submit
from archrepair_client.cli.options import FLAGS, Flags
from archrepair_client.errors import ArchRepairError
from archrepair_client.exits import INTERRUPTED, code_of_error


class Commands(TyperGroup):
    """The commands, and the border at which errors become words and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ArchRepairError as error:
            typer.echo(f"archrepair: {error}", err=True)
            raise typer.Exit(code_of_error(error)) from None
        except KeyboardInterrupt:
            typer.echo("archrepair: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(name="archrepair", cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _tell_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"archrepair {version('archrepair')}\n")
        raise typer.Exit


@app.callback()
def main(
    url: Annotated[str | None, typer.Option(help="The service; else $ARCHREPAIR_URL.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file with the API key; else $ARCHREPAIR_API_KEY.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Repair as a service for deep neural networks.

    Which service: --url, else $ARCHREPAIR_URL, else `archrepair login`, else `archrepair up` on this machine.
    """
    FLAGS.set(Flags(url, key_file))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("archrepair_client")
    log.handlers = [handler]  # what is sent again, and after how long
    log.setLevel(logging.INFO)


GROUPS = {
    "jobs": (jobs.app, "Look at jobs, follow, judge, cancel and delete them."),
    "models": (models.app, "Registered models."),
    "datasets": (datasets.app, "Registered data."),
    "report": (report.app, "The evidence of a job."),
    "keys": (keys.app, "The project's API keys."),
}
COMMANDS = (
    local_service.up,
    local_service.demo,
    local_service.doctor,
    login.login,
    submit.repair,
    submit.localize,
    submit.evaluate,
    ci.ci,
)
for command in COMMANDS:
    app.command()(command)
for name, (group, words) in GROUPS.items():
    app.add_typer(group, name=name, help=words, no_args_is_help=True)
