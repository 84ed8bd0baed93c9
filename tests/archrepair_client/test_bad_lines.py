"""What happens to an upload, a download and a wait when the line or the service goes away meanwhile."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from archrepair_client import ArchRepair, DigestMismatch, NoConnection, QuotaExceeded
from tests.servers import stop

LARGE_BYTES = 40_000_000


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.npz"
    path.write_bytes(os.urandom(LARGE_BYTES))
    return path


@pytest.fixture
def shaky(live, bad_line):
    with ArchRepair(base_url=bad_line.url, api_key=live.key) as client:
        yield client


@pytest.mark.slow
def test_an_upload_that_is_cut_at_70_percent_goes_on(shaky, bad_line, large):
    bad_line.cut_after["up"] = LARGE_BYTES * 7 // 10
    told = []
    upload = shaky.uploads.send(large, on_transfer=told.append)
    assert bad_line.cuts == 1
    assert (upload.state, upload.sha256) == ("completed", hashlib.sha256(large.read_bytes()).hexdigest())
    assert bad_line.passed["up"] < LARGE_BYTES * 1.95, "what had arrived was sent again"
    assert (told[-1].done_bytes, told[-1].total_bytes) == (large.stat().st_size, large.stat().st_size)


def test_another_process_goes_on_with_an_upload_and_sends_nothing_twice(live, bad_line, large, client):
    with ArchRepair(base_url=bad_line.url, api_key=live.key, max_retries=0) as hasty:
        bad_line.cut_after["up"] = LARGE_BYTES * 7 // 10
        with pytest.raises(NoConnection, match="1 attempts"):
            hasty.uploads.send(large, parallel=1)
    told = []
    upload = client.uploads.send(large, on_transfer=told.append)
    assert told[0].done_bytes > LARGE_BYTES // 2
    assert client.uploads.send(large).id == upload.id


@pytest.mark.slow
def test_a_download_that_is_cut_at_70_percent_goes_on(client, shaky, bad_line, large, files, tmp_path):
    told = []
    job = client.jobs.create_and_wait(
        model=files.model(), datasets={"repair": large}, on_transfer=lambda transfer: told.append(transfer)
    )
    assert told, "a large file goes in parts"
    expected = next(artifact for artifact in client.jobs.artifacts(job.id) if artifact.kind == "model")
    bad_line.cut_after["down"] = LARGE_BYTES * 7 // 10
    target = shaky.jobs.download_model(job.id, tmp_path / "fixed.pt", on_transfer=told.append)
    assert bad_line.cuts == 1
    assert hashlib.sha256(target.read_bytes()).hexdigest() == expected.sha256
    assert bad_line.passed["down"] < LARGE_BYTES * 1.3
    assert not list(tmp_path.glob(".*.part"))

    # Given up half-way, and taken up by another process.
    bad_line.cut_after["down"] = bad_line.passed["down"] + LARGE_BYTES * 7 // 10
    with pytest.raises(NoConnection, match="in a row"):
        shaky.with_options(max_retries=0).jobs.download_model(job.id, tmp_path / "again.pt")
    (partial,) = tmp_path.glob(".again.pt.*.part")
    assert LARGE_BYTES // 2 < partial.stat().st_size < LARGE_BYTES
    before = bad_line.passed["down"]
    target = shaky.jobs.download_model(job.id, tmp_path / "again.pt")
    assert hashlib.sha256(target.read_bytes()).hexdigest() == expected.sha256
    assert bad_line.passed["down"] - before < LARGE_BYTES * 0.6

    # What lay there was damaged: it is noticed, and all of it fetched again.
    target.rename(partial)
    with partial.open("r+b") as file:
        file.truncate(LARGE_BYTES // 2)
        file.write(b"damaged")
    target = shaky.jobs.download_model(job.id, tmp_path / "again.pt")
    assert hashlib.sha256(target.read_bytes()).hexdigest() == expected.sha256


@pytest.mark.slow
def test_a_wait_outlives_a_restart_of_the_gateway(live, shaky, bad_line, client, files):
    job = client.jobs.create(model=files.model(), datasets={"repair": files.data("run_for_ever")})
    with ExitStack() as stack:
        first = stack.enter_context(live.restart())
        bad_line.port = int(first.url.rpartition(":")[2])
        ended, events = [], []
        waiting = threading.Thread(target=lambda: ended.append(shaky.jobs.wait(job.id, on_event=events.append)))
        waiting.start()
        for _ in client.jobs.events(job.id):
            break
        stop(first.process)
        bad_line.cut()
        second = stack.enter_context(live.restart())
        bad_line.port = int(second.url.rpartition(":")[2])
        client.jobs.cancel(job.id)
        waiting.join(60)
    assert [job.status for job in ended] == ["cancelled"]
    assert events[-1].type == "job.cancelled"


@pytest.mark.slow
def test_three_503_make_one_job(live, impostor, files, client):
    impostor.answers += [(503, {"Retry-After": "0"})] * 3
    with ArchRepair(base_url=impostor.url, api_key=live.key) as unlucky:
        job = unlucky.jobs.create(model=files.model(), datasets={"repair": files.data()}, metadata={"of": "503"})
    assert len(impostor.keys) == 4
    assert len(set(impostor.keys)) == 1
    assert [found.id for found in client.jobs.list(metadata={"of": "503"})] == [job.id]


def test_being_told_to_come_back_in_an_hour_is_an_error_at_once(live, impostor, files):
    impostor.answers += [(429, {"Retry-After": "3600"})]
    with ArchRepair(base_url=impostor.url, api_key=live.key) as unlucky, pytest.raises(QuotaExceeded, match="a proxy"):
        unlucky.jobs.create(model=files.model(), datasets={"repair": files.data()})
    assert len(impostor.keys) == 1


def test_a_state_nobody_has_heard_of_is_kept_and_the_wait_ends(live, impostor, files):
    def change(path, body):
        answer = json.loads(body)
        if answer.get("object") == "job":
            answer |= {"status": "hibernating" if not answer["done"] else "transfigured", "moon": {"phase": "full"}}
            answer["verdict"] = "splendid"
        return json.dumps(answer).encode()

    impostor.change = change
    with ArchRepair(base_url=impostor.url, api_key=live.key) as old:
        job = old.jobs.create_and_wait(model=files.model(), datasets={"repair": files.data()}, timeout_seconds=60)
    assert (job.status, job.verdict, job.moon) == ("transfigured", "splendid", {"phase": "full"})


def test_bytes_that_are_not_those_of_the_digest_never_get_the_name(live, impostor, client, files, tmp_path):
    job = client.jobs.create_and_wait(model=files.model(), datasets={"repair": files.data()})
    artifact = next(artifact for artifact in client.jobs.artifacts(job.id) if artifact.kind == "report")
    impostor.change = lambda path, body: b"[]" if "content" in path else body
    with ArchRepair(base_url=impostor.url, api_key=live.key) as cheated, pytest.raises(DigestMismatch, match="twice"):
        cheated.jobs.download_artifact(artifact.id, tmp_path / "report.json")
    assert not (tmp_path / "report.json").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_files(live, tmp_path):
    size = 120_000_000
    with (tmp_path / "huge.npz").open("wb") as file:
        file.truncate(size)
    program = """
import resource, sys
from archrepair_client import ArchRepair
client = ArchRepair()
client.system.retrieve()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
client.uploads.send(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = {**os.environ, "ARCHREPAIR_URL": live.url, "ARCHREPAIR_API_KEY": live.key}
    done = subprocess.run([sys.executable, "-P", "-c", program, tmp_path / "huge.npz"], env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert int(done.stdout) * 1024 < size / 4
