"""Data that was registered over HTTP, or is fetched by a worker over TLS, in jobs of the real engine."""

import hashlib
from contextlib import ExitStack

import pytest

from tests.end_to_end.conftest import start_service
from tests.tls import make_authority, tls_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def ready(client, answer):
    """The dataset when it has been read."""
    assert answer.status_code == 202, answer.text
    for _ in range(4):
        found = client.http.get(f"/v1/datasets/{answer.json()['id']}", params={"wait": 30}).raise_for_status().json()
        if found["done"]:
            assert found["state"] == "ready", found["error"]
            return found
    raise AssertionError(f"not read: {found}")


def test_registered_data_and_a_builtin_set_repair_a_model(client, case):
    with case.repair.open("rb") as file:
        repair = ready(client, client.http.post("/v1/datasets", files={"file": ("repair.npz", file)}))
    digits = ready(client, client.http.post("/v1/datasets", json={"reference": "builtin:digits"}))
    assert (digits["num_samples"], digits["num_classes"], digits["sha256"]) == (1797, 10, None)
    assert (repair["format"], repair["labelled"]) == ("npz", True)
    spec = {
        "datasets": {"repair": repair["id"], "test": "upload:test", "regression": digits["id"]},
        "repair": {"method": "bn", "budget_seconds": 20},
    }
    job = client.wait(client.submit(spec=spec, model=case.model, test=case.test).json()["id"], seconds=300)
    assert job["status"] == "succeeded", job["error"]
    assert job["resolved_spec"]["inputs"][repair["id"]]["sha256"] == repair["sha256"]
    report = client.http.get(f"/v1/jobs/{job['id']}/report", params={"format": "json"}).raise_for_status().json()
    assert report["data"]["splits"]["regression"]["n"] == 1797 - 539  # three of ten limit the repair


@pytest.mark.usefixtures("_environment")
def test_data_on_a_server_of_tls_is_registered_and_repairs_a_model(case, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(make_authority(tmp_path)))
    monkeypatch.setenv("ARCHREPAIR_EGRESS_ALLOW", '["127.0.0.1", "localhost"]')
    files = {f"/{path.name}": path.read_bytes() for path in (case.repair, case.test)}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    with ExitStack() as stack:
        server = stack.enter_context(tls_server(tmp_path, files))
        client = start_service(stack, tmp_path / "state")
        server.redirects["/away"] = server.url("/repair.npz", host="localhost")
        asked = {"reference": server.url("/repair.npz"), "sha256": digests["/repair.npz"]}
        repair = ready(client, client.http.post("/v1/datasets", json=asked))
        assert (repair["filename"], repair["sha256"]) == ("repair.npz", digests["/repair.npz"])

        away = f"{server.url('/away')}#sha256={digests['/repair.npz']}"
        refused = client.submit(spec={"datasets": {"repair": away}}, model=case.model)
        test = f"{server.url('/test.npz')}#sha256={digests['/test.npz']}"
        spec = {"datasets": {"repair": repair["id"], "test": test}, "repair": {"method": "bn", "budget_seconds": 20}}
        job = client.wait(client.submit(spec=spec, model=case.model).json()["id"], seconds=300)
        assert job["status"] == "succeeded", job["error"]
        assert job["resolved_spec"]["inputs"][test]["sha256"] == digests["/test.npz"]
        assert client.wait(refused.json()["id"])["error"]["code"] == "dataset.redirect_refused"
        assert {host for host, _ in server.asked} == {f"127.0.0.1:{server.port}"}
