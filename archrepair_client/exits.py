"""What the exit codes of `archrepair` mean, the same for every command that waits for a job."""

from collections.abc import Mapping

from archrepair_client.errors import (
    APIError,
    ArchRepairError,
    AuthenticationFailed,
    BadInput,
    DigestMismatch,
    NoApiKey,
    NoConnection,
    NotConfigured,
    PermissionDenied,
    QuotaExceeded,
    ServiceFailed,
    WaitTimedOut,
)
from archrepair_client.types import Job

PASSED, GATE_FAILED, USAGE, BAD_MODEL_OR_DATA, PLATFORM = 0, 1, 2, 3, 4
TIMED_OUT, NOT_ALLOWED, QUOTA, INCONCLUSIVE, CANCELLED, INTERRUPTED = 5, 6, 7, 8, 9, 130
MEANINGS: Mapping[int, str] = {
    PASSED: "the job succeeded and its verdict is `pass`; a localization succeeded",
    GATE_FAILED: "a gate was not met, or nothing was better than the original",
    USAGE: "the command line, the configuration or the spec is wrong",
    BAD_MODEL_OR_DATA: "the model or the data cannot be used",
    PLATFORM: "the service or the network failed, after retries",
    TIMED_OUT: "the job was not done in time",
    NOT_ALLOWED: "no API key, a wrong one, or one without the scope",
    QUOTA: "a quota or rate limit is used up",
    INCONCLUSIVE: "the data cannot tell whether the gates are met",
    CANCELLED: "the job was cancelled",
    INTERRUPTED: "interrupted by Ctrl-C",
}
OF_ERRORS: Mapping[type[ArchRepairError], int] = {
    NoApiKey: NOT_ALLOWED,
    NotConfigured: USAGE,
    BadInput: USAGE,
    NoConnection: PLATFORM,
    DigestMismatch: PLATFORM,
    WaitTimedOut: TIMED_OUT,
    AuthenticationFailed: NOT_ALLOWED,
    PermissionDenied: NOT_ALLOWED,
    QuotaExceeded: QUOTA,
    ServiceFailed: PLATFORM,
}
OF_VERDICTS: Mapping[str, int] = {"pass": PASSED, "fail": GATE_FAILED}
# Families of codes whose refusals are about what was sent, not about how it was asked for.
ABOUT_INPUTS = ("model", "dataset", "upload")
WITHOUT_GATES = ("localized", "evaluated")


def code_of_error(error: ArchRepairError) -> int:
    """The exit code of a command that ends in this error."""
    for kind in type(error).__mro__:
        if kind in OF_ERRORS:
            return OF_ERRORS[kind]
    family = error.code.partition(".")[0] if isinstance(error, APIError) else ""
    return BAD_MODEL_OR_DATA if family in ABOUT_INPUTS else USAGE


def code_of_job(job: Job) -> int:
    """The exit code of a command that has waited for this job. A verdict of a later version is no pass."""
    if job.status == "cancelled":
        return CANCELLED
    if job.error is not None:
        if job.error.code == "job.deadline_exceeded":
            return TIMED_OUT
        return BAD_MODEL_OR_DATA if job.error.category == "user" else PLATFORM
    if job.outcome in WITHOUT_GATES and not (job.result or {}).get("gates"):
        return PASSED
    return OF_VERDICTS.get(job.verdict, INCONCLUSIVE)
