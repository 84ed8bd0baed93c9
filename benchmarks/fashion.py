"""Fashion-MNIST as Debian packages it: 70,000 grey pictures of clothes, fetched once, and which of them are for what.

Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017.
Legend: N images, H height, W width.
"""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import rotate

from benchmarks.cifar import FIRST_DEVELOPMENT_SEED, OUT, order_of_test_images

PACKAGE = "dataset-fashion-mnist"
# Where the package puts its files, under the root of the system or wherever it is unpacked.
INSIDE = "usr/share/datasets/fashion-mnist"
STEMS = {"train": "train", "test": "t10k"}
PREPROCESSING = {"mean": [0.286], "std": [0.353]}
TSHIRT, SHIRT = 0, 6
# The training images that networks learn from; what follows is the field, the last of it to develop with.
NUM_LEARNED = 30_000
FIELD, DEVELOPMENT_FIELD = (30_000, 50_000), (50_000, 60_000)


def load_fashion(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """`train` (60,000) or `test` (10,000): images N×28×28 and labels; fetches the package where it is not."""
    folder, stem = _find_files(), STEMS[split]
    images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    return images, read_idx(folder / f"{stem}-labels-idx1-ubyte.gz").astype(np.int64)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The bytes of a gzipped IDX file in its shape. Raises ValueError for anything but an IDX file of bytes."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">i4"))


def field_rows(seed: int) -> npt.NDArray[np.intp]:
    """Rows of `train` that no network learned from, in the order of one draw; others for a seed to develop with."""
    bounds = DEVELOPMENT_FIELD if seed >= FIRST_DEVELOPMENT_SEED else FIELD
    return np.random.default_rng(seed).permutation(np.arange(*bounds))


# The test set has as many images as CIFAR's, and is drawn from in the same way.
test_rows = order_of_test_images


def turned(images_NHW: npt.NDArray[np.uint8], degrees: float) -> npt.NDArray[np.uint8]:
    """The same pictures from a camera that hangs askew."""
    return rotate(images_NHW, degrees, axes=(2, 1), reshape=False, order=1)


def _find_files() -> Path:
    """The folder of the four files: the installed package, or one unpacked under benchmarks/out."""
    unpacked = OUT / "fashion"
    for folder in (Path("/") / INSIDE, unpacked / INSIDE):
        if folder.is_dir():
            return folder
    _unpack_package(unpacked)
    return unpacked / INSIDE


def _unpack_package(target: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        sys.exit(
            f"Fashion-MNIST comes as Debian's package {PACKAGE}, but there is no apt-get and dpkg-deb here; "
            f"put the four .gz files of the data set into {target / INSIDE}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _run("apt-get", "download", PACKAGE, folder=scratch)
        package = next(Path(scratch).glob("*.deb"))
        _run("dpkg-deb", "-x", str(package.resolve()), "unpacked", folder=scratch)
        if not target.is_dir():  # another process may have been faster
            os.replace(Path(scratch) / "unpacked", target)


def _run(*command: str, folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` failed (does `apt-get update` help?):\n{done.stderr}")
