"""The client library and the demo against a running service."""

import json
import subprocess
import sys

import pytest

from archrepair_client.jobs import ServiceError, download, follow_job, submit_job


def test_a_job_is_submitted_followed_and_downloaded(client, case, tmp_path):
    spec = {"kind": "localize", "datasets": {"repair": "upload:repair"}}
    told = []
    job = submit_job(client.http, spec, model=case.model, datasets={"repair": case.repair})
    job = follow_job(client.http, job["id"], told.append)
    assert (job["status"], job["result"]["outcome"]) == ("succeeded", "localized"), job
    assert told[-1]["done"]
    target = download(client.http, f"/v1/jobs/{job['id']}/localization", tmp_path / "localization.json")
    found = json.loads(target.read_text())
    assert (found["kind"], found["method"]) == (job["result"]["kind"], job["result"]["method"])
    assert found["drift"][0].keys() == {"layer", "divergence", "jump"}
    assert {"drift", "spectrum", "gradient", "spectrum+gradient"} <= found["methods"].keys()
    assert {"score", "score_sd", "top_share", "block"} <= found["blocks"][0].keys()


def test_a_refusal_is_an_error_in_words(client, case):
    spec = {"datasets": {"repair": "upload:repair"}, "repair": {"budget_second": 5}}
    with pytest.raises(ServiceError, match=r"spec\.unknown_field: .*budget_seconds"):
        submit_job(client.http, spec, model=case.model, datasets={"repair": case.repair})


def test_a_failed_download_leaves_nothing_under_its_name(client, tmp_path):
    with pytest.raises(ServiceError, match=r"job\.not_found"):
        download(client.http, "/v1/jobs/job_00000000000000000000000000/model", tmp_path / "repaired.pt")
    assert not (tmp_path / "repaired.pt").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_passes(tmp_path):
    command = (sys.executable, "-m", "archrepair_client", "demo", "--dir", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verdict: pass" in done.stdout
    assert (tmp_path / "repaired.pt").exists()
