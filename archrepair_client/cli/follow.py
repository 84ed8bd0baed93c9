"""A job from where it is to its end, on the terminal."""

from pathlib import Path

from archrepair_client.client import ArchRepair
from archrepair_client.display import Display
from archrepair_client.exits import code_of_job
from archrepair_client.output import JOB_FIELDS, Output, gate_lines, write_json, write_lines
from archrepair_client.types import Job


def followed(
    client: ArchRepair, job_id: str, output: Output, *, out: Path | None = None, timeout_seconds: float | None = None
) -> int:
    """Wait, fetch what there is into `out`, say what came out. The exit code."""
    with Display(quiet=output.quiet) as display:
        job = client.jobs.wait(job_id, on_change=display.job, timeout_seconds=timeout_seconds)
        files = fetch_results(client, job, out, display) if out is not None else []
    if output.as_json:
        write_json({**job.model_dump(mode="json"), "files": [str(path) for path in files]})
    else:
        output.item(job, JOB_FIELDS)
        if not output.quiet:
            write_lines(gate_lines((job.result or {}).get("gates", [])))
            write_lines(str(path) for path in files)
    return code_of_job(job)


def fetch_results(client: ArchRepair, job: Job, out: Path, display: Display) -> list[Path]:
    """The repaired model, and the report as page and data; what a job did not leave is left out."""
    if not job.artifacts:
        return []
    out.mkdir(parents=True, exist_ok=True)
    kinds = {artifact.kind for artifact in job.artifacts}
    files = []
    if "model" in kinds:
        files.append(client.jobs.download_model(job.id, out, on_transfer=display.transfer))
    for format_, kind in (("html", "report_html"), ("json", "report")):
        if kind in kinds:
            files.append(client.jobs.download_report(job.id, out / f"report.{format_}", format=format_))
    for artifact in job.artifacts:
        if artifact.kind == "localization":
            files.append(client.jobs.download_artifact(artifact.id, out / "localization.json"))
    return files
