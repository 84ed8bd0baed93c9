"""The whole of `archrepair ci`: submit, wait, fetch, tell the pipeline, and an exit code."""

import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from archrepair_client.ci.files import Ending, complete_files, fetch_files, remove_old, words_of
from archrepair_client.ci.github import annotations_of, append_outputs, append_summary
from archrepair_client.ci.pipeline import keys_of, metadata_of
from archrepair_client.client import ArchRepair
from archrepair_client.display import Display
from archrepair_client.errors import ArchRepairError, Conflict, WaitTimedOut
from archrepair_client.exits import INCONCLUSIVE, INTERRUPTED, PASSED, PLATFORM, code_of_error, code_of_job
from archrepair_client.output import gate_lines, write_lines
from archrepair_client.specs import Submission
from archrepair_client.types import Job


@dataclass(frozen=True)
class Policy:
    """What a pipeline wants of endings that are neither good nor bad."""

    timeout_seconds: float
    cancel_on_timeout: bool
    cancel_on_interrupt: bool
    inconclusive_passes: bool
    platform_failure_passes: bool


def run_ci(
    make: Callable[[], Submission],
    connect: Callable[[], ArchRepair],
    *,
    out: Path,
    policy: Policy,
    environment: Mapping[str, str],
) -> int:
    """Everything, whatever happens: also a refusal leaves its summary and JUnit file. The exit code."""
    out.mkdir(parents=True, exist_ok=True)
    remove_old(out)
    signal.signal(signal.SIGTERM, _interrupt)  # how GitLab and Jenkins end a step
    try:
        with connect() as client:
            ending = _ending(client, make(), out=out, policy=policy, environment=environment)
    except ArchRepairError as error:
        ending = Ending(code_of_error(error), str(error))
    ending = replace(ending, code=_as_wanted(ending.code, policy))
    complete_files(out, ending)
    _tell(ending, out, environment)
    return ending.code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _ending(
    client: ArchRepair, asked: Submission, *, out: Path, policy: Policy, environment: Mapping[str, str]
) -> Ending:
    job: Job | None = None
    with Display() as display:
        try:
            job = _submitted(client, asked, display, environment)
            sys.stderr.write(f"{job.id} is {job.status}\n")
            job = client.jobs.wait(job.id, on_change=display.job, timeout_seconds=policy.timeout_seconds)
            model = fetch_files(client, job, out)
        except WaitTimedOut as error:
            assert job is not None, "only a job is waited for"
            words = f"timed out: {error}"
            if policy.cancel_on_timeout:
                words = f"timed out: {job.id} took longer than {policy.timeout_seconds:g} s and was cancelled"
                _cancel(client, job)
            return Ending(code_of_error(error), words, job)
        except KeyboardInterrupt:
            if job is None or not policy.cancel_on_interrupt:
                return Ending(INTERRUPTED, "interrupted" + (f": {job.id} goes on" if job else ""), job)
            _cancel(client, job)
            return Ending(INTERRUPTED, f"interrupted: {job.id} was cancelled", job)
        except ArchRepairError as error:
            return Ending(code_of_error(error), str(error), job)
    return Ending(code_of_job(job), words_of(job), job, model)


def _submitted(client: ArchRepair, asked: Submission, display: Display, environment: Mapping[str, str]) -> Job:
    """A new job, or that of an earlier attempt of this run while there is hope in it."""
    found = {**metadata_of(environment), **asked.spec.get("metadata", {})}
    asked = replace(asked, spec={**asked.spec, **({"metadata": found} if found else {})})
    of_run, of_attempt = keys_of(environment, asked)
    try:
        job = client.jobs.submit(asked, key=of_run, on_transfer=display.transfer)
    except Conflict as error:
        if error.code != "request.idempotency_gone":
            raise
    else:
        if not job.done:
            job = client.jobs.retrieve(job.id)  # the answer may be that of the first attempt, with its state then
        if not job.done or job.status == "succeeded":
            return job
    return client.jobs.submit(asked, key=of_attempt, on_transfer=display.transfer)


def _cancel(client: ArchRepair, job: Job) -> None:
    try:
        client.with_options(max_retries=1).jobs.cancel(job.id)
    except ArchRepairError as error:
        sys.stderr.write(f"{job.id} could not be cancelled: {error}\n")


def _as_wanted(code: int, policy: Policy) -> int:
    forgiven = {INCONCLUSIVE: policy.inconclusive_passes, PLATFORM: policy.platform_failure_passes}
    return PASSED if forgiven.get(code) else code


def _tell(ending: Ending, out: Path, environment: Mapping[str, str]) -> None:
    lines = [ending.words]
    if ending.job is not None:
        lines += [ending.job.id, *gate_lines((ending.job.result or {}).get("gates", []))]
    write_lines(lines)
    if environment.get("GITHUB_ACTIONS") == "true":
        write_lines(annotations_of(ending))
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        append_summary(Path(summary), (out / "summary.md").read_text("utf-8"))
    if outputs := environment.get("GITHUB_OUTPUT"):
        values = {"verdict": ending.verdict, "exit-code": str(ending.code)}
        values["job-id"] = ending.job.id if ending.job is not None else ""
        values["model-path"] = str(ending.model or "")
        append_outputs(Path(outputs), values)
