"""The SDK against a live service: every resource, sync and async."""

import asyncio
import hashlib

import pytest

from archrepair_client import (
    ArchRepair,
    AsyncArchRepair,
    AuthenticationFailed,
    BadInput,
    Conflict,
    InvalidRequest,
    NoConnection,
    NotFound,
    PermissionDenied,
    WaitTimedOut,
)
from tests.servers import free_port


def test_a_job_runs_to_its_end_and_tells_what_happens_once_and_in_order(client, files, tmp_path):
    model, data, events, seen = files.model(), files.data(), [], []
    job = client.jobs.create_and_wait(
        model=model, datasets={"repair": data}, metadata={"run": "7"}, on_event=events.append, on_change=seen.append
    )
    assert (job.status, job.verdict, job.outcome) == ("succeeded", "pass", "repaired")
    types = [event.type for event in events]
    assert (types[0], types[-1]) == ("job.created", "job.succeeded")
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert (seen[0].done, seen[-1].done) == (False, True)

    target = client.jobs.download_model(job.id, tmp_path / "fixed.pt")
    assert target.read_bytes() == model.read_bytes() + data.read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    assert client.jobs.download_model(job.id, out).name == "resnet18.repaired.pt"
    artifact = next(artifact for artifact in client.jobs.artifacts(job.id) if artifact.kind == "model")
    got = client.jobs.download_artifact(artifact.id, out)
    assert (got.name, hashlib.sha256(got.read_bytes()).hexdigest()) == ("repaired.pt", artifact.sha256)
    assert client.jobs.report(job.id) == {}
    assert [event.type for event in client.jobs.events(job.id)] == types
    assert list(client.jobs.events(job.id, after=events[-1].seq)) == []
    assert any("a line of the log" in line.text for line in client.jobs.logs(job.id))
    assert [found.id for found in client.jobs.list(metadata={"run": "7"}, kind="repair")] == [job.id]

    again = client.jobs.retry(job.id)
    assert again.retry_of == job.id
    assert client.jobs.wait(again.id, timeout_seconds=60).status == "succeeded"
    client.jobs.delete(job.id)
    with pytest.raises(NotFound) as refused:
        client.jobs.retrieve(job.id)
    assert refused.value.code == "job.not_found"
    assert refused.value.request_id.startswith("req_")


@pytest.mark.slow
def test_the_async_client_does_the_same(live, files, tmp_path):
    async def use():
        async with AsyncArchRepair(base_url=live.url, api_key=live.key) as client:
            events = []
            asked = {"model": files.model(), "datasets": {"repair": files.data()}}
            jobs = await asyncio.gather(
                client.jobs.create_and_wait(**asked, on_event=events.append), client.jobs.create_and_wait(**asked)
            )
            assert [job.verdict for job in jobs] == ["pass", "pass"]
            assert events[-1].type == "job.succeeded"
            streamed = [event.type async for event in client.jobs.events(jobs[0].id)]
            assert streamed == [event.type for event in events]
            ids = [job.id async for job in client.jobs.list(limit=2)]
            assert set(ids) == {job.id for job in jobs}
            target = await client.jobs.download_model(jobs[0].id, tmp_path / "fixed.pt")
            assert target.read_bytes().startswith(b"PK")
            large = tmp_path / "large.npz"
            large.write_bytes(bytes(20_000_000))
            upload = await client.uploads.send(large)
            assert (upload.state, upload.sha256) == ("completed", hashlib.sha256(large.read_bytes()).hexdigest())
            with pytest.raises(NotFound):
                await client.jobs.retrieve("job_00000000000000000000000000")

    asyncio.run(use())


def test_models_and_data_are_registered_once_and_used_by_id(client, files):
    model = client.models.wait(client.models.create(files.model(), input_shape=[3, 8, 8]).id)
    assert (model.state, client.models.create(files.model(), input_shape=[3, 8, 8]).id) == ("ready", model.id)
    assert [block.name for block in client.models.blocks(model.id)] == ["layer1", "layer1.0"]
    dataset = client.datasets.wait(client.datasets.create(files.data(), name="signs").id)
    assert (dataset.state, dataset.name) == ("ready", "signs")
    job = client.jobs.create_and_wait(model=model.id, datasets={"repair": dataset.id})
    assert (job.verdict, job.model_id) == ("pass", model.id)
    assert model.id in [found.id for found in client.models.list(state="ready")]
    assert client.datasets.create("builtin:digits").reference == "builtin:digits"
    client.datasets.delete(dataset.id)
    client.models.delete(model.id)
    assert client.models.create(files.model(), input_shape=[3, 8, 8]).id != model.id


def test_keys_webhooks_and_the_system_are_there(client, live):
    key = client.keys.create("ci", scopes=["jobs:read"])
    assert key.key
    assert key.key not in repr(key)
    with ArchRepair(base_url=live.url, api_key=key.key) as reader:
        assert list(reader.jobs.list(limit=1)) is not None
        with pytest.raises(PermissionDenied, match="jobs:write"):
            reader.jobs.cancel("job_00000000000000000000000000")
        client.keys.delete(key.id)
        with pytest.raises(AuthenticationFailed):
            reader.jobs.retrieve("job_00000000000000000000000000")
    assert key.id not in [known.id for known in client.keys.list()]
    endpoint = client.webhooks.create("http://127.0.0.1:8080/hook", events=["job.failed"])
    assert endpoint.secret.startswith("whsec_")
    assert client.webhooks.update(endpoint.id, enabled=False).enabled is False
    delivery = client.webhooks.test(endpoint.id)
    assert [sent.id for sent in client.webhooks.deliveries(endpoint.id)] == [delivery.id]
    client.webhooks.delete(endpoint.id)
    assert client.system.retrieve().workers[0]["state"] in ("idle", "busy")


def test_a_running_job_is_waited_for_only_so_long_and_cancelled(client, files):
    job = client.jobs.create(model=files.model(), datasets={"repair": files.data("run_for_ever")})
    with pytest.raises(WaitTimedOut) as timeout:
        client.jobs.wait(job.id, timeout_seconds=0.5)
    assert timeout.value.last.id == job.id
    client.jobs.cancel(job.id)
    assert client.jobs.wait(job.id).status == "cancelled"
    with pytest.raises(Conflict):
        client.jobs.cancel(job.id)


@pytest.mark.slow
def test_a_log_is_followed_to_the_end_of_its_job(client, files):
    job = client.jobs.create(model=files.model(), datasets={"repair": files.data("run_for_ever")})
    lines = []
    for line in client.jobs.follow_logs(job.id):
        lines.append(line)
        if line.text == "job.started":
            client.jobs.cancel(job.id)
    texts = [line.text for line in lines]
    assert (texts[0], texts[-1].split()[0]) == ("job.created", "job.cancelled")
    assert texts.index("job.started") < len(texts) - 1, "what was said later was heard too"
    assert lines == client.jobs.logs(job.id)
    assert list(client.jobs.follow_logs(job.id, tail=1)) == lines[-1:]


def test_what_is_wrong_is_said_before_or_by_the_service(client, files, tmp_path):
    with pytest.raises(BadInput, match=r"nowhere\.pt is not a file"):
        client.jobs.create(model=tmp_path / "nowhere.pt", datasets={"repair": files.data()})
    (tmp_path / "empty.npz").touch()
    with pytest.raises(BadInput, match="is empty"):
        client.jobs.create(model=files.model(), datasets={"repair": tmp_path / "empty.npz"})
    spec = {"datasets": {"repair": "upload:repair"}}
    assert client.jobs.validate(spec)["repair"]["method"] == "auto"
    with pytest.raises(InvalidRequest, match="budget_seconds") as refused:
        client.jobs.validate({**spec, "repair": {"budget_second": 5}})
    assert refused.value.problem.errors[0].pointer == "#/repair/budget_second"


def test_a_service_that_is_not_there_is_given_up_in_time():
    url = f"http://127.0.0.1:{free_port()}"
    with (
        ArchRepair(base_url=url, api_key="none").with_options(max_retries=1) as client,
        pytest.raises(NoConnection, match=r"2 attempts.*archrepair up.*ARCHREPAIR_URL"),
    ):
        client.system.retrieve()
