"""Tiny-ImageNet, which is not ours to hand on: from the folder that `$ARCHREPAIR_TINY_IMAGENET` names.

Le & Yang, "Tiny ImageNet Visual Recognition Challenge", 2015. The folder has Parquet files as Hugging Face keeps the
data set: train-*.parquet and valid-*.parquet with columns image{bytes,path} and label.
"""

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.cifar import OUT, decode_once

VARIABLE = "ARCHREPAIR_TINY_IMAGENET"
STEMS = {"train": "train", "test": "valid"}
NUM_CLASSES, EDGE = 200, 64


def load_tiny_imagenet(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """`train` (100,000) or `test` (the 10,000 to validate with, as those of the test have no labels): N×64×64×3."""
    return decode_once(lambda: _find_files(STEMS[split]), OUT / f"tiny-imagenet-{split}.npz")


def _find_files(stem: str) -> list[Path]:
    folder = os.environ.get(VARIABLE)
    if not folder:
        sys.exit(f"set {VARIABLE} to the folder that has Tiny-ImageNet's train-*.parquet and valid-*.parquet")
    if not (files := sorted(Path(folder).glob(f"**/{stem}-*.parquet"))):
        sys.exit(f"{folder} has no {stem}-*.parquet; {VARIABLE} names the folder with the files of Tiny-ImageNet")
    return files
