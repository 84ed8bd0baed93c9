"""`archrepair jobs …`."""

from pathlib import Path
from typing import Annotated

import typer

from archrepair_client.cli.follow import followed
from archrepair_client.cli.options import (
    AsJson,
    JobId,
    Limit,
    Metadata,
    Quiet,
    Timeout,
    connected,
    pairs_of,
    seconds_of,
)
from archrepair_client.exits import INCONCLUSIVE, OF_VERDICTS
from archrepair_client.output import JOB_COLUMNS, JOB_FIELDS, Output, gate_lines, write_json, write_lines
from archrepair_client.types import LogLine

app = typer.Typer()
JobIds = Annotated[list[str], typer.Argument(metavar="JOB…", help="job_…, one or several.")]


@app.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, cancelled, …")] = None,
    kind: Annotated[str | None, typer.Option(help="repair, localize, evaluate")] = None,
    verdict: Annotated[str | None, typer.Option(help="pass, fail, inconclusive, not_evaluated")] = None,
    metadata: Metadata = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The project's jobs, newest first."""
    with connected() as client:
        pairs = pairs_of(metadata, option="--metadata")
        found = client.jobs.list(status=status, kind=kind, verdict=verdict, metadata=pairs, limit=limit)
        Output(as_json, quiet).items(found, JOB_COLUMNS)


@app.command()
def show(job: JobId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """One job, as it is now."""
    with connected() as client:
        Output(as_json, quiet).item(client.jobs.retrieve(job), JOB_FIELDS)


@app.command()
def watch(
    job: JobId,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Fetch its files there.")] = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Follow a job to its end, and exit as its verdict says."""
    limit = seconds_of(timeout)
    with connected() as client:
        raise typer.Exit(followed(client, job, Output(as_json, quiet), out=out, timeout_seconds=limit))


@app.command()
def logs(
    job: JobId,
    tail: Annotated[int, typer.Option(min=1, max=10_000, help="So many of the last lines.")] = 1000,
    attempt: Annotated[int | None, typer.Option(min=1)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what is said, until the job is done.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the service did with the job, and what its engine said. JSON is a list; with --follow, an object a line."""
    with connected() as client:
        if follow:
            lines = client.jobs.follow_logs(job, tail=tail, attempt=attempt)
            write_lines(line.model_dump_json() if as_json else _in_words(line) for line in lines)
            return
        found = client.jobs.logs(job, tail=tail, attempt=attempt)
    if as_json:
        write_json([line.model_dump(mode="json") for line in found])
    else:
        write_lines(_in_words(line) for line in found)


def _in_words(line: LogLine) -> str:
    return f"{line.at:%H:%M:%S} #{line.attempt or 0} {line.source:<7} {line.text}"


@app.command()
def events(job: JobId) -> None:
    """What happened to the job and what happens, a JSON object a line, until its end."""
    with connected() as client:
        write_lines(event.model_dump_json() for event in client.jobs.events(job))


@app.command()
def cancel(
    jobs: JobIds,
    keep_best: Annotated[bool, typer.Option("--keep-best", help="Have it hand over the best it has first.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Ask jobs to stop."""
    with connected() as client:
        Output(as_json, quiet).items([client.jobs.cancel(job, keep_best=keep_best) for job in jobs], JOB_COLUMNS)


@app.command()
def retry(job: JobId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Run a job that is done once more, as a new one."""
    with connected() as client:
        Output(as_json, quiet).item(client.jobs.retry(job), JOB_FIELDS)


@app.command()
def delete(jobs: JobIds, quiet: Quiet = False) -> None:
    """Delete jobs that are done, with their files."""
    with connected() as client:
        for job in jobs:
            client.jobs.delete(job)
            Output(quiet=quiet).note(f"deleted {job}")


@app.command()
def verdict(
    job: JobId,
    gate: Annotated[list[str], typer.Option("--gate", "-g", help='e.g. "test.broken_rate <= 0.01"; repeatable.')],
    as_json: AsJson = False,
) -> None:
    """Put other gates to a job that has ended; nothing is run again. Exits as the verdict says."""
    with connected() as client:
        found = client.jobs.verdict(job, gate)
    if as_json:
        write_json(found.model_dump(mode="json"))
    else:
        write_lines([found.verdict, *gate_lines(found.gates)])
    raise typer.Exit(OF_VERDICTS.get(found.verdict, INCONCLUSIVE))
