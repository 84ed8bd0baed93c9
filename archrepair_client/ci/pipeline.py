"""Which pipeline this is, by its environment: a rerun finds the job of the run before, and people find the commit."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archrepair_client.specs import Submission
from archrepair_client.transfers import sha256_of


@dataclass(frozen=True)
class Kind:
    """A CI system: variables that are the same for all attempts of a run, that of the attempt, that of the commit."""

    run: Sequence[str]
    attempt: str
    commit: str


KINDS: Mapping[str, Kind] = {
    "GITHUB_RUN_ID": Kind(("GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_JOB"), "GITHUB_RUN_ATTEMPT", "GITHUB_SHA"),
    "CI_PIPELINE_ID": Kind(("CI_PROJECT_PATH", "CI_PIPELINE_ID", "CI_JOB_NAME"), "CI_JOB_ID", "CI_COMMIT_SHA"),
    "BUILD_TAG": Kind(("JENKINS_URL", "BUILD_TAG"), "BUILD_TAG", "GIT_COMMIT"),
}


def kind_of(environment: Mapping[str, str]) -> Kind | None:
    """The CI system this runs in; None on a person's machine."""
    return next((kind for name, kind in KINDS.items() if environment.get(name)), None)


def metadata_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What a job is to be found by: the commit and the run."""
    kind = kind_of(environment)
    if kind is None:
        return {}
    run = " ".join(environment.get(name, "") for name in kind.run)
    return {name: value for name, value in (("git_sha", environment.get(kind.commit, "")), ("ci_run", run)) if value}


def keys_of(environment: Mapping[str, str], asked: Submission) -> tuple[str, str]:
    """(of the run, of this attempt): the `Idempotency-Key` of the same spec, model and data in the same run."""
    kind = kind_of(environment)
    if kind is None:
        return str(uuid.uuid4()), str(uuid.uuid4())
    run = [environment.get(name, "") for name in kind.run]
    files = {name: sha256_of(path) for name, path in asked.all_files().items()}
    content = json.dumps([run, asked.spec, files], sort_keys=True).encode()
    key = f"ci-{hashlib.sha256(content).hexdigest()}"
    return key, f"{key}-{environment.get(kind.attempt, '')}"
