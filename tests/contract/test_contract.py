"""The running service against its OpenAPI document: schemathesis, every phase, every check, nothing switched off.

`make test-contract` runs it with thousands of examples; what is fast enough for every run is here too.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.servers import environment_of, running

SECONDS_PER_REQUEST = "30"


@pytest.fixture(scope="module")
def contract_service(stack, start_gateway, tmp_path_factory):
    """A gateway in which everything may be made and deleted."""
    directory = tmp_path_factory.mktemp("contract")
    settings = stack.fresh(directory / "state", spec_bytes=64 * 1024, one_shot_body_bytes=1024 * 1024,
                           egress_allow=("127.0.0.1",))  # fmt: skip
    with start_gateway(settings) as gateway:
        yield gateway


@pytest.fixture
def worker(contract_service):
    """So that there are jobs and models in every state; its engine is a double."""
    command = (sys.executable, "-P", Path(__file__).parents[1] / "worker" / "worker_with_double.py")
    with running(command, env={**os.environ, **environment_of(contract_service.settings)}):
        yield


def run_schemathesis(gateway, directory, *options):
    """What it counted, and what it said."""
    key_id = gateway.client.get("/v1/api-keys").json()["data"][-1]["id"]
    report = directory / "report.json"
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{gateway.url}/openapi.json", "--no-color"]
    command += ["--checks", "all", "--continue-on-failure", "--request-timeout", SECONDS_PER_REQUEST, *options]
    command += ["--header", f"Authorization: Bearer {gateway.key}"]
    command += ["--report", "json", "--report-json-path", report]
    environment = {**os.environ, "CONTRACT_KEY_ID": key_id, "CONTRACT_DROPPED": str(directory / "dropped")}
    environment["SCHEMATHESIS_HOOKS"] = "tests.contract.hooks"
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [str(word) for word in command], env=environment, cwd=directory, capture_output=True, text=True
    )
    assert report.exists(), done.stdout + done.stderr
    return json.loads(report.read_text()), done.stdout


def dropped(directory):
    """How often a valid request was refused by which rule beyond the schema."""
    path = directory / "dropped"
    return Counter(path.read_text().splitlines() if path.exists() else ())


def answers(log):
    """(method, path, status) of every request in a gateway's log, ids left out."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    requests = [line for line in lines if line.get("event") == "request"]
    return Counter((line["method"], line["path"].count("/"), line["status"]) for line in requests)


def require_truth(gateway, directory, *options):
    report, said = run_schemathesis(gateway, directory, *options)
    assert report["test_cases"]["unique_failures"] == report["test_cases"]["errored"] == 0, said[-20_000:]
    assert report["operations"]["tested"] == report["operations"]["total"] > 20
    counts = answers(gateway.settings.state_dir.parent / "gateway.log")
    # It got past the border: things were made, looked at and deleted.
    assert min(counts["POST", 2, 202], counts["POST", 2, 201], counts["GET", 3, 200], counts["DELETE", 3, 204]) > 0
    assert not [key for key in counts if key[2] >= 500]
    return report


@pytest.mark.timeout(600)
def test_what_is_documented_is_what_happens(contract_service, tmp_path):
    require_truth(contract_service, tmp_path, "--phases", "coverage,stateful", "--max-examples", "5")


@pytest.mark.contract
@pytest.mark.timeout(5400)
@pytest.mark.usefixtures("worker")
def test_what_is_documented_is_what_happens_thousands_of_times(contract_service, tmp_path, capsys):
    examples = os.environ.get("ARCHREPAIR_CONTRACT_EXAMPLES", "200")
    report = require_truth(contract_service, tmp_path, "--max-examples", examples)
    with capsys.disabled():
        cases = report["test_cases"]
        stack = "production" if contract_service.settings.store_url.startswith("s3:") else "embedded"
        print(
            f"\n{stack}: {cases['generated']} test cases, {cases['unique_failures']} failures; not stated in a schema:"
        )
        print("\n".join(f"  {count} × {line}" for line, count in dropped(tmp_path).most_common()))
    assert report["test_cases"]["generated"] >= 2000
