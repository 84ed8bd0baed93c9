"""Where the CIFAR-10 files are, and their images decoded once."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

OUT = Path("benchmarks/out")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_CLASSES = 10
PREPROCESSING = {"mean": list(MEAN), "std": list(STD)}


def find_data() -> Path:
    """The folder with the CIFAR-10 files: `$ARCHREPAIR_DATA`, or `shared/data` beside the checkout."""
    found = Path(os.environ.get("ARCHREPAIR_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (found / "cifar10-jpeg-test.parquet").is_file():
        sys.exit(f"{found} has no cifar10-jpeg-test.parquet; set ARCHREPAIR_DATA to the folder that has it")
    return found


def load_cifar(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """JPEG CIFAR-10 (`train` or `test`), or `lossless-train4k`: images N×32×32×3 and labels; decoded once to npz."""
    stem = f"cifar10-{split}" if split.startswith("lossless") else f"cifar10-jpeg-{split}"
    return decode_once(lambda: [find_data() / f"{stem}.parquet"], OUT / f"{stem}.npz")


def decode_once(
    find_files: Callable[[], Sequence[Path]], cached: Path
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The images N×H×W×3 and labels of Parquet files as Hugging Face writes them, kept in `cached` from then on."""
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        tables = [pq.read_table(path, columns=["image", "label"]) for path in find_files()]
        table = pa.concat_tables(tables)
        encoded = (image["bytes"].as_py() for image in table["image"])
        images = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in encoded]
        partial = cached.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, images=np.stack(images), labels=np.asarray(table["label"], dtype=np.int64))
        partial.replace(cached)
    with np.load(cached) as stored:
        return stored["images"], stored["labels"]


# Everything the defaults were developed on; no draw that is published has any of it.
NUM_DEVELOPMENT = 4000
# Draws to develop with have seeds from here on.
FIRST_DEVELOPMENT_SEED = 1000
_SPLIT_SEED = 12345


def order_of_test_images(seed: int) -> npt.NDArray[np.intp]:
    """The 6,000 test images nothing was developed on, in the order of one draw; the other 4,000 for a seed to develop
    with."""
    shuffled = np.random.default_rng(_SPLIT_SEED).permutation(10_000)
    part = slice(None, NUM_DEVELOPMENT) if seed >= FIRST_DEVELOPMENT_SEED else slice(NUM_DEVELOPMENT, None)
    return np.random.default_rng(seed).permutation(shuffled[part])


def development_rows() -> npt.NDArray[np.intp]:
    """The 4,000 to develop with, in one fixed order."""
    return np.random.default_rng(_SPLIT_SEED).permutation(10_000)[:NUM_DEVELOPMENT]
