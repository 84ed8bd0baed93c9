"""The paper's networks and data, which no machine of ours can run through: what can be seen without them."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from archrepair_client import ArchRepair
from archrepair_client.running import running_service
from benchmarks import cases, tiny_imagenet, zoo
from benchmarks.paper_networks import PAPER_NETWORKS
from benchmarks.results import row_of
from benchmarks.run import Run, run_one
from benchmarks.suites import SUITES


@pytest.fixture
def tiny_files(tmp_path, monkeypatch):
    """Images of one colour each, red the label, the last of each file grey, in a folder like that of Hugging Face."""

    def write(stem, count, place=0):
        labels = np.arange(count) % 10  # of which some have two failures each, to cut validation from
        colours = [(int(label), *divmod(row, 256)) for row, label in enumerate(labels)]
        images = [Image.new("RGB", (tiny_imagenet.EDGE,) * 2, colour) for colour in colours]
        images[-1] = Image.new("L", images[-1].size, 77)
        rows = {"image": [{"bytes": png(image), "path": None} for image in images], "label": labels}
        (tmp_path / "files" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows), tmp_path / "files" / "data" / f"{stem}-0000{place}-of-00002.parquet")

    monkeypatch.setattr(tiny_imagenet, "OUT", tmp_path / "out")
    monkeypatch.setenv(tiny_imagenet.VARIABLE, str(tmp_path / "files"))
    return write


def png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_tiny_imagenet_is_read_in_the_order_of_its_files_and_kept(tiny_files, monkeypatch):
    tiny_files("train", 5, place=1)
    tiny_files("train", 3, place=0)
    images, labels = tiny_imagenet.load_tiny_imagenet("train")
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert images.shape == (8, 64, 64, 3)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 77, 0, 1, 2, 3, 77]
    assert (images[2] == 77).all()
    monkeypatch.delenv(tiny_imagenet.VARIABLE)
    assert (tiny_imagenet.load_tiny_imagenet("train")[0] == images).all()


def test_who_has_no_tiny_imagenet_is_told_what_to_set(tiny_files, tmp_path, monkeypatch):
    tiny_files("valid", 3)
    with pytest.raises(SystemExit, match=r"files has no train-\*\.parquet"):
        tiny_imagenet.load_tiny_imagenet("train")
    monkeypatch.delenv(tiny_imagenet.VARIABLE)
    with pytest.raises(SystemExit, match="set ARCHREPAIR_TINY_IMAGENET to the folder"):
        tiny_imagenet.load_tiny_imagenet("train")


@pytest.mark.parametrize("name", PAPER_NETWORKS)
def test_the_papers_networks_keep_small_images_large(name):
    """Three halvings are left of the five that torchvision makes of large images."""
    seen = []
    with torch.device("meta"):
        network = PAPER_NETWORKS[name](200).eval()
        last = network.features if name.startswith("DenseNet") else network.layer4
        last.register_forward_hook(lambda module, args, output: seen.append(output.shape[-1]))
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 200)
    assert seen == [8]


def test_the_papers_sizes_are_run_only_by_name_where_there_is_no_gpu():
    suite = SUITES["paper sizes"]
    assert suite.needs_gpu
    assert (suite.protocol, len(suite.cases)) == ("paper", 4 * 2 * 16)
    assert not any(other.needs_gpu for name, other in SUITES.items() if name != "paper sizes")
    assert set(zoo.SMALL).isdisjoint(zoo.paper_name(name, "cifar") for name in PAPER_NETWORKS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cell_of_the_papers_sizes_runs_through_on_a_processor(tiny_files, tmp_path, monkeypatch):
    tiny_files("train", 16)
    tiny_files("valid", 10_000)
    name = zoo.paper_name("ResNet-18", "tiny-imagenet")
    build, recipe = zoo.ZOO[name]
    monkeypatch.setitem(zoo.ZOO, name, (build, replace(recipe, images=16, epochs=1)))
    monkeypatch.setattr(zoo, "BATCH_SIZE", 8)
    measure = zoo.accuracy_of
    monkeypatch.setattr(zoo, "accuracy_of", lambda net, images, labels, how: measure(net, images[:9], labels[:9], how))
    monkeypatch.setattr(zoo, "OUT", tmp_path / "zoo")
    monkeypatch.setattr("benchmarks.run.RUNS", tmp_path / "runs")
    monkeypatch.setattr(cases, "NUM_REPAIR", 40)
    monkeypatch.setattr(cases, "NUM_TEST", 60)
    monkeypatch.setattr(cases, "NUM_FAILURES", 30)
    run = Run("ResNet-18 tiny-imagenet fog", "weights of one block", 23, "paper", seconds=20)
    (tmp_path / "scratch").mkdir()
    with (
        running_service(tmp_path / "state") as service,
        ArchRepair(base_url=service.url, api_key=service.api_key) as client,
    ):
        job = run_one(client, run, tmp_path / "scratch")
    assert job.verdict in {"fail", "inconclusive", "pass"}
    with np.load(run.answers) as answers:
        row = row_of(run, json.loads(run.report.read_text()), answers)
        assert answers["test_before"].shape == (70, tiny_imagenet.NUM_CLASSES)
    assert (row["network"], row["fault"], row["protocol"]) == ("ResNet-18", "shift", "paper")
    assert row["accuracy_before"] < 0.2  # one pass over 16 images teaches next to nothing
