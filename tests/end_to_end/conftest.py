"""One running service for all end-to-end tests, and a small faulty model with its data."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from archrepair_client.running import RunningService, running_service

LEASE_SECONDS = 3


@dataclass(frozen=True)
class Case:
    """A model that fails on its `repair` and `test` images."""

    model: Path
    repair: Path
    test: Path


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    directory = tmp_path_factory.mktemp("case")
    command = (sys.executable, "-m", "archrepair_core.demo.digits", str(directory))
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Case(directory / "model.pt", directory / "repair.npz", directory / "test.npz")


@dataclass(frozen=True)
class Client:
    """The service as its customer sees it, and the processes behind it as an operator does."""

    service: RunningService
    http: httpx.Client
    state_dir: Path

    def submit(self, *, spec, **files):
        """POST /jobs with the spec first; `files` are parts by name."""
        with ExitStack() as stack:
            parts = [("spec", (None, spec if isinstance(spec, str) else json.dumps(spec), "application/json"))]
            for name, path in files.items():
                parts.append((name, (path.name, stack.enter_context(path.open("rb")), "application/octet-stream")))
            return self.http.post("/v1/jobs", files=parts)

    def job(self, job_id, **query):
        return self.http.get(f"/v1/jobs/{job_id}", params=query).raise_for_status().json()

    def wait(self, job_id, seconds=90):
        """The job when it is done; each request waits on the server."""
        for _ in range(seconds // 10):
            job = self.job(job_id, wait=10)
            if job["done"]:
                return job
        raise AssertionError(f"not done after {seconds} s: {job}")


def start_service(stack, state_dir):
    service = stack.enter_context(running_service(state_dir))
    return Client(service, stack.enter_context(service.client()), state_dir)


@pytest.fixture(scope="session")
def _environment():
    """The service inherits it: a short lease, so that a lost worker is noticed fast, and few threads."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("ARCHREPAIR_"):
                patch.delenv(name)
        patch.setenv("ARCHREPAIR_LEASE_SECONDS", str(LEASE_SECONDS))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def client(_environment, tmp_path_factory):
    with ExitStack() as stack:
        yield start_service(stack, tmp_path_factory.mktemp("service"))


@pytest.fixture
def own_client(_environment, tmp_path):
    """A service that the test may destroy."""
    with ExitStack() as stack:
        yield start_service(stack, tmp_path / "state")
