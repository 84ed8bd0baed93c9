"""The service as a whole: broker, worker, gateway and engine, started by one command and used over HTTP."""

import dataclasses
import hashlib
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile

import httpx
import numpy as np
import pytest
from PIL import Image

SPEC = {
    "datasets": {"repair": "upload:repair", "test": "upload:test"},
    "gates": ["test.accuracy > before", "test.mcnemar_p < 0.05"],
    "repair": {"method": "weights", "budget_seconds": 5},
    "evaluation": {"controls": "none"},
}
LONG_SPEC = {**SPEC, "repair": {"method": "weights", "epochs": 1000, "budget_seconds": 600}}
PROBLEM = {"code", "detail", "hint"}


def submit_case(client, case, spec):
    answer = client.submit(spec=spec, model=case.model, repair=case.repair, test=case.test)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def wait_for_phase(client, job_id, phase, eventually):
    def reached():
        job = client.job(job_id)
        assert not job["done"], job
        return job["phase"] == phase

    eventually(reached, 60)


def pids_of(tree, words):
    return [pid for (pid, _), command in tree.items() if words in command]


def test_a_faulty_model_comes_back_repaired(client, case, tmp_path):
    job_id = submit_case(client, case, SPEC)
    job = client.wait(job_id)

    assert (job["status"], job["verdict"]) == ("succeeded", "pass"), job
    assert job["result"]["outcome"] == "repaired"
    assert job["phases"][0]["name"] == "ingesting"
    assert all(phase["finished_at"] for phase in job["phases"])
    assert job["resolved_spec"]["repair"]["method"] == "weights"

    answer = client.http.get(f"/v1/jobs/{job_id}/model").raise_for_status()
    artifacts = client.http.get(f"/v1/jobs/{job_id}/artifacts").raise_for_status().json()["data"]
    by_name = {artifact["name"]: artifact for artifact in artifacts}
    repaired = next(artifact for artifact in artifacts if artifact["kind"] == "model")
    assert repaired["sha256"] == hashlib.sha256(answer.content).hexdigest()
    assert {"report.json", "engine.log"} <= set(by_name)
    (tmp_path / "repaired.pt").write_bytes(answer.content)
    assert accuracy(tmp_path / "repaired.pt", case.test) > accuracy(case.model, case.test) + 0.05

    again = client.http.post(f"/v1/jobs/{job_id}/verdict", json={"gates": SPEC["gates"]}).raise_for_status().json()
    assert (again["verdict"], again["gates"]) == (job["verdict"], job["result"]["gates"])
    stricter = {"gates": ["test.accuracy >= 1", "cost.params_ratio <= 1"]}
    stricter = client.http.post(f"/v1/jobs/{job_id}/verdict", json=stricter).raise_for_status().json()
    assert (stricter["verdict"], [gate["state"] for gate in stricter["gates"]]) == ("fail", ["fail", "pass"])

    model = client.http.get(f"/v1/models/{job['model_id']}").raise_for_status().json()
    assert (model["state"], model["input_shape_source"]) == ("ready", "data"), model
    blocks = client.http.get(model["links"]["blocks"]).raise_for_status().json()["data"]
    assert any(block["level"] == "block" for block in blocks)


@pytest.mark.slow
def test_controls_are_measured_beside_the_repair_told_and_never_delivered(client, case):
    spec = {**SPEC, "repair": {"method": "block_search", "budget_seconds": 4}, "evaluation": {"controls": "auto"}}
    job = client.wait(submit_case(client, case, spec), seconds=180)
    assert job["status"] == "succeeded", job["error"]
    controls = {control["name"]: control for control in job["result"]["controls"]}
    assert list(controls) == job["resolved_spec"]["evaluation"]["controls"] == ["weights", "random_block"]
    allowed = controls["weights"]["allowed_seconds"]
    for control in controls.values():
        # A machine under load may take longer than a default control may; then the report says so.
        assert control["ran"] == (allowed <= 30), control["reason"]
        assert control["repaired"] == [] or set(control["repaired"]).isdisjoint(
            job["result"]["blocks_repaired"] if control["name"] == "random_block" else ()
        )
    events = client.http.get(f"/v1/jobs/{job['id']}/events").raise_for_status().json()["data"]
    told = [event["data"].get("message", "") for event in events if event["type"] == "job.progress"]
    assert any("control" in message for message in told) == (allowed <= 30)
    page = client.http.get(f"/v1/jobs/{job['id']}/report", params={"format": "html"}).raise_for_status().text
    assert "<h2>Controls</h2>" in page


@pytest.mark.slow
def test_an_evaluation_measures_slices_and_corruptions_and_makes_no_model(client, case, tmp_path):
    with np.load(case.test) as arrays:
        by_hour = {"hour": np.array(["day", "night"])[np.arange(len(arrays["labels"])) % 2], **arrays}
    np.savez(tmp_path / "test.npz", **by_hour)
    spec = {
        "kind": "evaluate",
        "datasets": {"test": "upload:test"},
        "evaluation": {"corruptions": ["fog", "contrast"], "max_inputs": 100, "slices": ["hour"]},
        "gates": ["test.accuracy >= 0.5", "test.worst_slice_accuracy >= 0.5", "corruptions.accuracy >= 0.99"],
    }
    answer = client.submit(spec=spec, model=case.model, test=tmp_path / "test.npz")
    assert answer.status_code == 202, answer.text
    job = client.wait(answer.json()["id"])

    assert (job["kind"], job["status"], job["verdict"]) == ("evaluate", "succeeded", "fail"), job
    assert [phase["name"] for phase in job["phases"]][:4] == ["ingesting", "baseline", "verifying", "packaging"]
    result = job["result"]
    assert (result["outcome"], result["recommended"]) == ("evaluated", False)
    assert result["test"]["accuracy"]["after"] == pytest.approx(accuracy(case.model, case.test))
    assert {row["value"] for row in result["slices"][0]["slices"]} == {"day", "night"}
    assert [row["kind"] for row in result["corruptions"]["kinds"]] == ["fog", "contrast"]
    assert {artifact["kind"] for artifact in job["artifacts"]} >= {"report", "report_html", "report_md", "predictions"}
    page = client.http.get(f"/v1/jobs/{job['id']}/report", params={"format": "html"}).raise_for_status().text
    assert "Evaluation report" in page
    refused = client.http.get(f"/v1/jobs/{job['id']}/model")
    assert (refused.status_code, "only measures" in refused.json()["detail"]) == (404, True)
    assert client.http.get(f"/v1/jobs/{job['id']}/localization").status_code == 404

    again = client.http.post(f"/v1/jobs/{job['id']}/verdict", json={"gates": spec["gates"]}).raise_for_status().json()
    assert (again["verdict"], again["gates"]) == (job["verdict"], result["gates"])
    looser = {"gates": ["corruptions.accuracy >= 0.01"]}
    assert client.http.post(f"/v1/jobs/{job['id']}/verdict", json=looser).json()["verdict"] == "pass"
    unmeasured = client.http.post(f"/v1/jobs/{job['id']}/verdict", json={"gates": ["test.broken_rate <= 1"]})
    assert (unmeasured.status_code, unmeasured.json()["code"]) == (422, "job.gate_not_measured")
    assert "test.worst_slice_accuracy" in unmeasured.json()["hint"]

    listed = client.http.get("/v1/jobs", params={"kind": "evaluate"}).raise_for_status().json()["data"]
    assert job["id"] in {row["id"] for row in listed}
    model = client.http.get(f"/v1/models/{job['model_id']}").raise_for_status().json()
    assert (model["state"], model["input_shape_source"]) == ("ready", "data"), model
    wrong = client.submit(spec=spec | {"datasets": {"repair": "upload:test"}}, model=case.model, test=case.test)
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "#/datasets/test")


@pytest.mark.slow
def test_field_images_need_no_labels(client, case, tmp_path):
    with np.load(case.repair) as arrays:
        np.savez(tmp_path / "field.npz", images=arrays["images"])
    unlabelled = dataclasses.replace(case, repair=tmp_path / "field.npz")
    job = client.wait(submit_case(client, unlabelled, {**SPEC, "repair": {"method": "bn"}}))
    assert job["status"] == "succeeded", job
    assert job["result"]["outcome"] in ("repaired", "no_improvement")
    refused = client.wait(submit_case(client, unlabelled, SPEC))
    assert (refused["status"], refused["error"]["code"]) == ("failed", "dataset.labels_missing"), refused
    assert "align" in refused["error"]["hint"]


def as_class_folders(data, path, names):
    """The images as PNG files in a zip, in folders that are called by words."""
    with np.load(data) as arrays, zipfile.ZipFile(path, "w") as archive:
        for row, (pixels, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            archive.writestr(f"signs/{names[label]}/{row}.png", content.getvalue())
    return path


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_job_gives_the_model_in_every_format_from_folders_of_images(client, case, tmp_path):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    case = dataclasses.replace(case, repair=as_class_folders(case.repair, tmp_path / "signs.zip", names))
    formats = {"torchscript": "pt", "torch_export": "pt2", "onnx": "onnx", "safetensors": "safetensors"}
    job_id = submit_case(client, case, {**SPEC, "outputs": list(formats), "model": {"class_names": names}})
    job = client.wait(job_id, seconds=240)  # four formats, each checked in a process of its own
    assert job["result"]["outcome"] == "repaired", job
    assert {export["format"]: export["file"] for export in job["result"]["exports"]} == {
        format_: f"repaired.{suffix}" for format_, suffix in formats.items()
    }
    for format_, suffix in formats.items():
        answer = client.http.get(f"/v1/jobs/{job_id}/model", params={"format": format_}).raise_for_status()
        assert f'filename="model.repaired.{suffix}"' in answer.headers["content-disposition"]
        (tmp_path / f"repaired.{suffix}").write_bytes(answer.content)
    run_in_plain_python(RUN_ALL, tmp_path, case.test)


# By the libraries alone: the runtimes agree with TorchScript, and the weights are the same bits.
RUN_ALL = """
import sys, numpy as np, onnxruntime, torch
from safetensors.torch import load_file
folder = sys.argv[1]
x = torch.tensor(np.load(sys.argv[2])['images'])[:, None].float() / 255
script = torch.jit.load(f'{folder}/repaired.pt')
with torch.no_grad():
    expected = script(x)
    assert torch.allclose(torch.export.load(f'{folder}/repaired.pt2').module()(x), expected, atol=1e-5)
session = onnxruntime.InferenceSession(f'{folder}/repaired.onnx', providers=['CPUExecutionProvider'])
found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
assert np.allclose(found, expected.numpy(), atol=1e-4)
weights = load_file(f'{folder}/repaired.safetensors')
assert weights.keys() == script.state_dict().keys()
assert all(torch.equal(weights[name], value) for name, value in script.state_dict().items())
"""


def run_in_plain_python(code, *arguments):
    command = (sys.executable, "-W", "ignore", "-P", "-c", code, *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout


def accuracy(model, data):
    """By plain torch, in a process that does not know this project."""
    code = (
        "import sys, numpy as np, torch\n"
        "data = np.load(sys.argv[2])\n"
        "x = torch.tensor(data['images'])[:, None].float() / 255\n"
        "print((torch.jit.load(sys.argv[1])(x).argmax(1).numpy() == data['labels']).mean())\n"
    )
    return float(run_in_plain_python(code, model, data))


def test_cancel_frees_the_machine_within_seconds(client, case, processes, eventually):
    job_id = submit_case(client, case, LONG_SPEC)
    wait_for_phase(client, job_id, "repairing", eventually)
    before = processes.tree(client.service.pid)
    (engine,) = pids_of(before, "archrepair_core.standby")

    asked_at = time.monotonic()
    assert client.http.post(f"/v1/jobs/{job_id}/cancel", json={}).status_code == 202
    job = client.wait(job_id)

    assert job["status"] == "cancelled"
    processes.wait_until_gone({key: command for key, command in before.items() if key[0] == engine}, 5)
    assert time.monotonic() - asked_at < 5
    assert client.http.post(f"/v1/jobs/{job_id}/cancel", json={}).status_code == 409


@pytest.mark.slow
def test_a_cancel_may_keep_the_best_so_far(client, case, tmp_path, eventually):
    job_id = submit_case(client, case, {**LONG_SPEC, "gates": ["test.accuracy > before"]})
    path = f"/v1/jobs/{job_id}"
    trained = re.compile(r": step [0-9]{3,} of ")  # long enough for something to be better
    eventually(lambda: trained.search((client.job(job_id)["progress"] or {}).get("message", "")), 60)
    log = client.http.get(f"{path}/logs").raise_for_status().text
    assert "sandbox: " in log, "the engine's log is there while it runs"

    asked = client.http.post(f"{path}/cancel", json={"keep_best": True})
    assert (asked.status_code, asked.json()["status"]) == (202, "cancelling")
    job = client.wait(job_id)

    assert (job["status"], job["verdict"], job["error"]) == ("cancelled", "pass", None), job
    assert (job["result"]["outcome"], job["result"]["completion"]) == ("repaired", "partial")
    answer = client.http.get(f"{path}/model").raise_for_status()
    (tmp_path / "repaired.pt").write_bytes(answer.content)
    assert accuracy(tmp_path / "repaired.pt", case.test) > accuracy(case.model, case.test)
    report = client.http.get(f"{path}/report", params={"format": "md"}).raise_for_status().text
    assert "stopped on request" in report
    again = client.http.post(f"{path}/verdict", json={"gates": ["test.accuracy > before"]}).raise_for_status().json()
    assert again["verdict"] == "pass"


@pytest.mark.slow
def test_a_job_survives_the_killing_of_its_worker(client, case, processes, eventually):
    job_id = submit_case(client, case, SPEC)
    wait_for_phase(client, job_id, "repairing", eventually)
    tree = processes.tree(client.service.pid)
    worker = min(pids_of(tree, "worker.celery_app"))

    os.kill(worker, signal.SIGKILL)
    job = client.wait(job_id)

    assert (job["status"], job["attempt"]) == ("succeeded", 2), job
    assert "worker was killed by SIGKILL; starting it again" in (client.state_dir / "up.log").read_text()
    # What remains is the empty directory of the engine that waits for the next job. `os.walk`, unlike `rglob`, bears
    # that a directory is removed under it.
    eventually(lambda: not [file for _, _, files in os.walk(client.state_dir / "scratch") for file in files])


def register(client, path, **fields):
    with path.open("rb") as file:
        answer = client.http.post("/v1/models", files={"model": (path.name, file)}, data=fields)
    assert answer.status_code == 202, answer.text
    return answer.json()["links"]["self"]


def wait_for_model(client, path, seconds=60):
    return client.http.get(path, params={"wait": seconds}, timeout=seconds + 10).raise_for_status().json()


@pytest.mark.slow
def test_a_registered_model_shows_its_blocks_before_and_after_a_job(client, case):
    path = register(client, case.model, input_shape="[1, 8, 8]")
    job = client.http.post(
        "/v1/jobs", json={"model_id": path.rpartition("/")[2], "datasets": {"repair": "builtin:digits"}}
    )
    assert job.status_code == 202  # it waits its turn behind the inspection
    model = wait_for_model(client, path)

    assert (model["state"], model["format"], model["error"]) == ("ready", "torchscript", None), model
    assert (model["input_shape"], model["input_shape_source"]) == ([1, 8, 8], "given")
    blocks = client.http.get(f"{path}/blocks").raise_for_status().json()["data"]
    assert sum(block["level"] == "block" for block in blocks) == model["num_blocks"] > 0
    client.http.post(f"{job.json()['links']['self']}/cancel", json={})
    client.wait(job.json()["id"])
    assert client.http.delete(path).status_code == 204


@pytest.mark.slow
def test_a_model_that_is_none_is_rejected_with_the_reason(client, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 this is no archive")
    path = register(client, tmp_path / "model.pt")
    model = wait_for_model(client, path)
    assert model["state"] == "rejected"
    assert model["error"]["code"].startswith("model.")
    assert model["error"]["hint"]


@pytest.mark.slow
def test_an_inspection_survives_the_killing_of_its_worker(client, case, processes, eventually):
    path = register(client, case.model)
    jobs = {"kind": "inspect", "model_id": path.rpartition("/")[2]}

    def inspection():
        return client.http.get("/v1/jobs", params=jobs).raise_for_status().json()["data"][0]

    eventually(lambda: inspection()["status"] == "running", 30)
    os.kill(min(pids_of(processes.tree(client.service.pid), "worker.celery_app")), signal.SIGKILL)
    model = wait_for_model(client, path)

    assert model["state"] == "ready", model
    job = client.wait(inspection()["id"])  # the model is ready a moment before its inspection ends
    assert (job["status"], job["attempt"]) == ("succeeded", 2)


@pytest.mark.slow
def test_the_gateway_comes_back_after_being_killed(client, processes, eventually):
    (gateway,) = pids_of(processes.tree(client.service.pid), "app.main:create_app")
    os.kill(gateway, signal.SIGKILL)

    def answers():
        try:
            return client.http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    eventually(answers, 30)


def write(path, content):
    path.write_bytes(content)
    return path


def random_bytes(tmp_path, case):
    return {"model": write(tmp_path / "model.pt", os.urandom(5000)), "repair": case.repair, "test": case.test}


def pickle_as_model(tmp_path, case):
    content = pickle.dumps({"weights": [1.0, 2.0]})
    return {"model": write(tmp_path / "model.pt", content), "repair": case.repair, "test": case.test}


def images_of_the_wrong_shape(tmp_path, case):
    path = tmp_path / "wide.npz"
    np.savez(path, images=np.zeros((50, 8, 8, 3), np.uint8), labels=np.arange(50) % 10)
    return {"model": case.model, "repair": path, "test": case.test}


@pytest.mark.parametrize(
    ("files", "family"),
    [(random_bytes, "model"), (pickle_as_model, "model"), (images_of_the_wrong_shape, "dataset")],
)
def test_a_bad_upload_is_a_clear_error_and_the_service_lives(client, case, tmp_path, files, family):
    answer = client.submit(spec=SPEC, **files(tmp_path, case))
    error = answer.json()
    if answer.status_code == 202:
        job = client.wait(error["id"], seconds=30)
        assert job["status"] == "failed", job
        error = job["error"]
        assert error["category"] == "user"
        assert error["phase"] == "ingesting"
    else:
        assert 400 <= answer.status_code < 500
    assert error.keys() >= PROBLEM
    assert error["code"].startswith(f"{family}."), error
    assert error["hint"]
    assert client.http.get("/readyz").is_success


def test_a_request_that_contradicts_itself_is_refused_at_once(client, case):
    unknown = client.submit(spec={**SPEC, "sede": 1}, model=case.model, repair=case.repair, test=case.test)
    missing = client.submit(spec=SPEC, model=case.model, repair=case.repair)
    broken = client.submit(spec="{", model=case.model, repair=case.repair)
    for answer in (unknown, missing, broken):
        assert 400 <= answer.status_code < 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json().keys() >= PROBLEM
    assert "seed" in unknown.text


@pytest.mark.slow
def test_nothing_is_left_of_a_service_whose_supervisor_was_killed(own_client, case, processes, eventually):
    job_id = submit_case(own_client, case, LONG_SPEC)
    wait_for_phase(own_client, job_id, "repairing", eventually)
    tree = processes.tree(own_client.service.pid)
    commands = "\n".join(tree.values())
    for part in ("valkey-server", "worker.celery_app", "spawn_main", "archrepair_core.standby", "app.main:create_app"):
        assert part in commands
    secret = own_client.http.headers["Authorization"].removeprefix("Bearer ")
    assert secret not in commands
    assert "redis://" not in commands

    os.kill(own_client.service.pid, signal.SIGKILL)

    processes.wait_until_gone(tree, 5)


def test_a_second_service_on_the_same_directory_is_refused(client):
    command = (sys.executable, "-P", "-m", "archrepair_client", "up", "--state-dir", str(client.state_dir))
    done = subprocess.run((*command, "--port", "0"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"pid {client.service.pid}" in done.stderr
    assert client.http.get("/healthz").is_success
