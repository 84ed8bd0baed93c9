"""`archrepair report …`."""

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from archrepair_client.cli.options import JobId, connected
from archrepair_client.output import write_lines

app = typer.Typer()
FORMATS = ("html", "json", "md", "junit")
Target = Annotated[Path | None, typer.Option("--out", "-o", help="The file; else a temporary one.")]


@app.command("open")
def open_report(job: JobId, out: Target = None) -> None:
    """Open the report of a job in the browser; its file is named on stdout."""
    target = out or Path(tempfile.mkdtemp(prefix="archrepair-")) / f"{job}.html"
    with connected() as client:
        client.jobs.download_report(job, target, format="html")
    write_lines([str(target)])
    webbrowser.open(target.absolute().as_uri())


@app.command()
def show(job: JobId, format: Annotated[str, typer.Option(help=", ".join(FORMATS))] = "md") -> None:
    """The report of a job on stdout."""
    with connected() as client, tempfile.TemporaryDirectory() as directory:
        path = client.jobs.download_report(job, Path(directory) / "report", format=format)
        write_lines([path.read_text("utf-8").rstrip("\n")])
