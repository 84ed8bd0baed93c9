"""The paper's method over HTTP on networks of the paper: a cell is found, and the file computes what the engine did."""

import json
import os
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchvision.models import DenseNet, resnet18

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_CLASSES = 4
DATA = Path(os.environ.get("ARCHREPAIR_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
NETWORKS = {
    "resnet18 scripted": (lambda: resnet18(num_classes=NUM_CLASSES), "script"),
    "resnet18 traced": (lambda: resnet18(num_classes=NUM_CLASSES), "trace"),
    "densenet scripted": (lambda: DenseNet(8, (2, 2), 16, 2, num_classes=NUM_CLASSES), "script"),
}


def colours(path, seed, count=160):
    """Noisy images, each with a colour that says its class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, count)
    tones = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [160, 160, 60]])
    images = tones[labels][:, None, None] + rng.normal(0, 40, (count, 32, 32, 3))
    np.savez(path, images=images.clip(0, 255).astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    """Untrained, so that there is much to repair, but some answers are right by chance."""
    make, kind = NETWORKS[request.param]
    torch.manual_seed(1)
    net, path = make(), tmp_path_factory.mktemp("network") / "model.pt"
    net(torch.rand(32, 3, 32, 32))  # its batch-norms see something
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = (
            torch.jit.script(net.eval()) if kind == "script" else torch.jit.trace(net.eval(), torch.rand(2, 3, 32, 32))
        )
        torch.jit.save(compiled, str(path))
    return path


def repair_by_cell(client, model, repair, test, **spec):
    asked = {
        "datasets": {"repair": "upload:repair", "test": "upload:test"},
        "gates": ["test.accuracy > 0"],
        "repair": {
            "method": "archrepair",
            "epochs": 3,
            "budget_seconds": 120,
            "augment": "none",
            "max_latency_ratio": 10,
            "max_params_ratio": 10,
            "max_macs_ratio": 10,
        },
    } | spec
    answer = client.submit(spec=asked, model=model, repair=repair, test=test)
    assert answer.status_code == 202, answer.text
    job = client.wait(answer.json()["id"], seconds=600)
    assert job["status"] == "succeeded", job
    listed = client.http.get(f"/v1/jobs/{job['id']}/artifacts").raise_for_status().json()["data"]
    return job, {
        item["name"]: client.http.get(f"/v1/artifacts/{item['id']}/content", follow_redirects=True)
        .raise_for_status()
        .content
        for item in listed
    }


def assert_the_file_answers_as_the_engine_did(files, test, tmp_path):
    """Nothing of ours is asked: plain torch loads the file, and the engine's answers lie in predictions.npz."""
    name = "repaired.pt" if "repaired.pt" in files else "candidate.pt"
    for part in (name, "predictions.npz"):
        (tmp_path / part).write_bytes(files[part])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.load(str(tmp_path / name)).eval()
    with np.load(test) as arrays, np.load(tmp_path / "predictions.npz") as predictions, torch.inference_mode():
        inputs = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float() / 255
        torch.testing.assert_close(model(inputs), torch.from_numpy(predictions["test_after"]), rtol=1e-3, atol=1e-3)


def test_a_network_of_the_paper_gets_a_cell_that_its_file_computes(client, network, tmp_path):
    repair, test = colours(tmp_path / "repair.npz", 1), colours(tmp_path / "test.npz", 2)
    job, files = repair_by_cell(client, network, repair, test)
    report = json.loads(files["report.json"])
    (trial,) = report["trials"]
    (edit,) = trial["genotype"]["edits"]
    assert job["result"]["outcome"] in ("repaired", "no_improvement")
    assert report["localization"]["method"] == "spectrum+gradient"
    assert len(trial["search"]["shares"]) >= 2
    assert report["chosen"] is not None, "colours are easy to learn"
    assert report["chosen"]["genotype"] == trial["genotype"]
    words = {text.text for text in ElementTree.fromstring(files["genotype.svg"]).iter() if text.text}
    assert {edge["operation"] for edge in edit["edges"]} <= words
    assert_the_file_answers_as_the_engine_did(files, test, tmp_path)


def test_a_trained_network_that_is_served_jpeg_images_gets_a_cell(client, tmp_path):
    if not (DATA / "cifar10-jpeg-test.parquet").is_file():
        pytest.skip("no cifar10-jpeg-test.parquet: set ARCHREPAIR_DATA to the directory that holds it")
    table = pq.read_table(DATA / "cifar10-jpeg-test.parquet", columns=["image", "label"])
    for name, start in (("repair", 0), ("test", 300)):
        pq.write_table(table.take(pa.array(range(start, start + 300))), tmp_path / f"{name}.parquet")
    job, files = repair_by_cell(
        client,
        DATA / "resnet20-cifar10.torchscript.pt",
        tmp_path / "repair.parquet",
        tmp_path / "test.parquet",
        preprocessing={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    )
    report = json.loads(files["report.json"])
    assert job["result"]["outcome"] in ("repaired", "no_improvement")
    assert report["trials"][0]["genotype"]["edits"]
    if job["result"]["outcome"] == "no_improvement":
        assert "repaired.pt" not in files, "what is not better is not handed out"
