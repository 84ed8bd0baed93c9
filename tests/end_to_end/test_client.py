"""The client library and the demo against a running service."""

import subprocess
import sys

import pytest

from archrepair_client import ArchRepair, NotFound


@pytest.mark.slow
def test_a_localization_is_followed_and_read(client, case, tmp_path):
    told = []
    with ArchRepair(base_url=client.service.url, api_key=client.service.api_key) as sdk:
        job = sdk.jobs.create_and_wait(
            kind="localize", model=case.model, datasets={"repair": case.repair}, on_change=told.append
        )
        assert (job.status, job.outcome) == ("succeeded", "localized"), job
        assert told[-1].done
        found = sdk.jobs.localization(job.id)
        with pytest.raises(NotFound, match=r"job\.no_repaired_model"):
            sdk.jobs.download_model(job.id, tmp_path / "repaired.pt")
    assert not (tmp_path / "repaired.pt").exists()
    assert (found["kind"], found["method"]) == (job.result["kind"], job.result["method"])
    assert found["drift"][0].keys() == {"layer", "divergence", "jump"}
    assert {"drift", "spectrum", "gradient", "spectrum+gradient"} <= found["methods"].keys()
    assert {"score", "score_sd", "top_share", "block"} <= found["blocks"][0].keys()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_passes(tmp_path):
    command = (sys.executable, "-m", "archrepair_client", "demo", "--dir", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verdict: pass" in done.stdout
    assert (tmp_path / "repaired.pt").exists()
