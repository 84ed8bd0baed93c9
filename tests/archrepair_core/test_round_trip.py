"""The same 500 images in every format: an evaluation says the same of them, bit for bit."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.repair import repair_model
from archrepair_core.request import RepairRequest
from archrepair_core.spec import RepairSpec
from tests.archrepair_core.data.packed import as_tar, as_zip, nested, npy, npz, parquet, png

COUNT, CLASSES, SHARDS = 500, 5, 4
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 12, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, CLASSES, COUNT)
ENCODED = [png(pixels) for pixels in PIXELS]
HOURS = ["day", "dusk", "night"]
# What is sliced by, where a format has columns.
HOUR = [HOURS[row % 3] for row in range(COUNT)]


def rows_of(image, **options):
    return parquet({"image": image, "label": LABELS, "hour": HOUR}, **options)


def folders():
    return [
        (f"set/{label}/{row:03}.png", image) for row, (image, label) in enumerate(zip(ENCODED, LABELS, strict=True))
    ]


def samples(rows):
    for row in rows:
        yield f"{row:06}.png", ENCODED[row]
        yield f"{row:06}.json", json.dumps({"label": int(LABELS[row]), "hour": HOUR[row]}).encode()


def manifest():
    text = io.StringIO()
    csv.writer(text).writerows(
        [("path", "label", "hour"), *((f"i/{row}.png", LABELS[row], HOUR[row]) for row in range(COUNT))]
    )
    return [("index.csv", text.getvalue().encode()), *((f"i/{row}.png", image) for row, image in enumerate(ENCODED))]


STRUCT = [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(ENCODED)]
WITH_COLUMNS = {
    "npz": lambda: npz(images=PIXELS, labels=LABELS, hour=np.array(HOUR)),
    "npz, compressed, channels first": lambda: npz(
        np.savez_compressed, images=PIXELS.transpose(0, 3, 1, 2), labels=LABELS, hour=np.array(HOUR)
    ),
    "Parquet of structs": lambda: rows_of(STRUCT),
    "Parquet of structs in row groups": lambda: rows_of(STRUCT, row_group_size=70, compression="zstd"),
    "Parquet of bytes": lambda: rows_of(ENCODED),
    "Parquet of lists": lambda: rows_of(nested(PIXELS.astype(np.int64)), row_group_size=70),
    "Parquet of lists, channels first": lambda: rows_of(nested(PIXELS.transpose(0, 3, 1, 2))),
    "WebDataset": lambda: as_tar(samples(range(COUNT))),
    "WebDataset in shards": lambda: b"".join(
        as_tar(samples(rows), "gz") for rows in np.array_split(np.arange(COUNT), SHARDS)
    ),
    "zip with a CSV": lambda: as_zip(manifest()),
    "tar with a CSV": lambda: as_tar(manifest(), "xz"),
}
WITHOUT_COLUMNS = {
    "pair of npy": lambda: as_tar([("fog.npy", npy(PIXELS)), ("labels.npy", npy(LABELS))]),
    "zip of folders": lambda: as_zip(folders()),
    "tar.gz of folders": lambda: as_tar(folders(), "gz"),
}


class Untrained(nn.Module):
    """Answers that hang on every pixel."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 10, CLASSES))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("round-trip")
    torch.manual_seed(0)
    torch.jit.script(Untrained()).save(str(directory / "model.pt"))

    def evaluate_bytes(content, *, slices):
        """What was measured, and the logits."""
        work, out, data = directory / "work", directory / "out", directory / "data"
        work.mkdir(exist_ok=True)
        out.mkdir(exist_ok=True)
        data.write_bytes(content)
        spec = RepairSpec.model_validate(
            {"kind": "evaluate", "datasets": {"test": "upload:test"}, "seed": 3,
             "evaluation": {"corruptions": ["gaussian_noise"], "max_inputs": 40, "slices": slices}}
        )  # fmt: skip
        request = RepairRequest(directory / "model.pt", {"upload:test": data}, spec, work, out)
        measured = repair_model(request, lambda _: None).result
        measured["corruptions"].pop("seconds")
        with np.load(out / "predictions.npz") as arrays:
            logits = arrays["test_after"]
        digest = json.loads((out / "report.json").read_text())["data"]["splits"]["test"]["digest"]
        said = {key: measured.get(key) for key in ("test", "corruptions", "slices")}
        return json.dumps(said | {"digest": digest}), logits

    return evaluate_bytes


@pytest.fixture(scope="module")
def from_npz(evaluate):
    return {bool(slices): evaluate(WITH_COLUMNS["npz"](), slices=slices) for slices in ([], ["hour"])}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WITH_COLUMNS, *WITHOUT_COLUMNS])
def test_every_format_gives_the_same_evaluation(evaluate, from_npz, name):
    has_columns = name in WITH_COLUMNS
    content = (WITH_COLUMNS | WITHOUT_COLUMNS)[name]()
    said, logits = evaluate(content, slices=["hour"] if has_columns else [])
    assert said == from_npz[has_columns][0]
    np.testing.assert_array_equal(logits, from_npz[has_columns][1])


@pytest.mark.slow
def test_one_pixel_of_one_image_is_another_evaluation(evaluate, from_npz):
    pixels = PIXELS.copy()
    pixels[77, 5, 5, 0] ^= 128
    said, logits = evaluate(npz(images=pixels, labels=LABELS), slices=[])
    assert json.loads(said)["digest"] != json.loads(from_npz[False][0])["digest"]
    assert (logits != from_npz[False][1]).any(axis=1).nonzero()[0].tolist() == [77]
