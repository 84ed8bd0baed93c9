import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from archrepair_core.data.describe import describe_dataset
from archrepair_core.errors import DatasetError
from tests.archrepair_core.data.packed import as_tar, png
from worker.engine_events import DatasetFacts


@pytest.fixture
def files(tmp_path):
    images = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3, 1)
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.array([0, 2, 2, 0, 2]))
    np.savez(tmp_path / "bare.npz", images=images)
    (tmp_path / "none.npz").write_bytes(b"not data")
    return {name: tmp_path / f"{name}.npz" for name in ("labelled", "bare", "none")}


def test_facts_of_labelled_data_count_its_classes(files, tmp_path):
    facts = describe_dataset("labelled", files, tmp_path)
    assert len(facts.pop("content_sha256")) == 64
    assert facts == {"format": "npz", "num_samples": 5, "image_shape": [4, 3, 1], "pixel_type": "uint8",
                     "labelled": True, "num_classes": 2, "classes": {"0": 2, "2": 3}, "num_skipped": 0, "skipped": [],
                     "duplicates": {"exact": 0, "near": 0, "compared": 0}}  # fmt: skip


def test_facts_name_what_was_skipped_and_count_what_stands_twice(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 250, (200, 6, 6, 3), dtype=np.uint8)
    shown = [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BILINEAR)) for each in coarse]
    shown[20] = shown[10]  # pixel for pixel
    shown[40] = shown[30] + np.uint8(2)  # nearly
    encoded = [png(each) for each in shown]
    encoded[7] = encoded[7][:-40]
    data = tmp_path / "data.tar"
    data.write_bytes(as_tar([(f"{'dog' if row % 2 else 'cat'}/{row}.png", each) for row, each in enumerate(encoded)]))
    facts = describe_dataset("x", {"x": data}, tmp_path)
    assert (facts["num_samples"], facts["num_skipped"], facts["classes"]) == (199, 1, {"cat": 100, "dog": 99})
    (skipped,) = facts["skipped"]
    assert (skipped["row"], skipped["name"], bool(skipped["reason"])) == (7, "'dog/7.png'", True)
    assert facts["duplicates"] == {"exact": 1, "near": 1, "compared": 199}
    assert DatasetFacts.model_validate(facts).model_dump(mode="json") == facts, "as the worker takes it"


def test_facts_of_bare_images_and_of_a_builtin(files, tmp_path):
    bare = describe_dataset("bare", files, tmp_path)
    assert (bare["labelled"], bare["num_classes"], bare["classes"]) == (False, None, None)
    digits = describe_dataset("builtin:digits", {}, tmp_path)
    assert (digits["format"], digits["num_samples"], digits["num_classes"]) == ("builtin", 1797, 10)


def test_what_a_repair_could_not_read_is_refused(files, tmp_path):
    with pytest.raises(DatasetError, match="neither"):
        describe_dataset("none", files, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_an_engine_reads_a_dataset_in_its_sandbox(files, tmp_path, packed):
    if packed:
        data = tmp_path / "labelled.tar.gz"
        with tarfile.open(data, "w:gz") as archive, zipfile.ZipFile(files["labelled"]) as arrays:
            for name in arrays.namelist():
                arrays.extract(name, tmp_path)
                archive.add(tmp_path / name, f"set/{name}")
        files["labelled"] = data
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    request = {
        "model": "",
        "datasets": {"upload:file": str(files["labelled"])},
        "spec": {"kind": "ingest", "datasets": {"dataset": "upload:file"}},
        "work_dir": str(work),
        "out_dir": str(out),
    }
    command = (sys.executable, "-P", "-m", "archrepair_core.standby", "best_effort")
    engine = subprocess.run(
        [*command, str(files["labelled"]), str(work), str(out)], input=json.dumps(request).encode() + b"\n",
        capture_output=True,
    )  # fmt: skip
    events = {event["type"]: event for event in map(json.loads, engine.stdout.splitlines())}
    assert "result" in events, engine.stderr.decode()[-2000:]
    assert events["dataset"]["facts"]["num_samples"] == 5
    assert events["result"]["result"] == {"outcome": "ingested"}
