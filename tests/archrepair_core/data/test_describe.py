import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from archrepair_core.data.describe import describe_dataset
from archrepair_core.errors import DatasetError


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
                     "labelled": True, "num_classes": 2, "classes": {"0": 2, "2": 3}}  # fmt: skip


def test_facts_of_bare_images_and_of_a_builtin(files, tmp_path):
    bare = describe_dataset("bare", files, tmp_path)
    assert (bare["labelled"], bare["num_classes"], bare["classes"]) == (False, None, None)
    digits = describe_dataset("builtin:digits", {}, tmp_path)
    assert (digits["format"], digits["num_samples"], digits["num_classes"]) == ("builtin", 1797, 10)


def test_what_a_repair_could_not_read_is_refused(files, tmp_path):
    with pytest.raises(DatasetError, match="neither"):
        describe_dataset("none", files, tmp_path)


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
