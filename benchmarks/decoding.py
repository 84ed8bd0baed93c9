"""How fast images are decoded on their way into a job, with one thread and with several.

The same reader as in a job, from a Parquet file, whole: decoding, digest, writing pixels. Pictures are crops of the
photographs that scikit-learn brings along; threads take turns, so that the load of the machine moves all of them.

    python -m benchmarks.decoding
"""

import argparse
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from archrepair_core.data import encoded
from archrepair_core.data.formats import load_dataset
from benchmarks.corruptions import photographs

CASES = {"JPEG, 224 px": ("JPEG", 224), "PNG, 224 px": ("PNG", 224), "PNG, 32 px": ("PNG", 32)}
REPEATS = 3


def write_images(path: Path, image_format: str, edge: int, count: int) -> None:
    """A Parquet file as Hugging Face writes it."""
    rows = []
    for pixels in photographs(min(count, 100), edge):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, image_format, **({"quality": 90} if image_format == "JPEG" else {}))
        rows.append({"bytes": buffer.getvalue(), "path": None})
    rows = (rows * -(-count // len(rows)))[:count]
    pq.write_table(pa.table({"image": rows, "label": [0] * count}), path, compression="none", use_dictionary=False)


def images_per_second(path: Path, count: int, threads: int) -> float:
    """Of one pass of the reader."""
    encoded.MAX_THREADS = threads
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        load_dataset("upload:x", {"upload:x": path}, name="x", work_dir=Path(folder))
        return count / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, cores})
    titles = [f"{number} thread{'s' if number > 1 else ''}, images/s" for number in threads]
    lines = [f"| images | bytes each | {' | '.join(titles)} |", "|---|---|" + "---|" * len(threads)]
    with tempfile.TemporaryDirectory() as folder:
        for name, (image_format, edge) in CASES.items():
            path = Path(folder, "images.parquet")
            write_images(path, image_format, edge, options.images)
            turns = [[images_per_second(path, options.images, number) for number in threads] for _ in range(REPEATS)]
            medians = [statistics.median(column) for column in zip(*turns, strict=True)]
            size = path.stat().st_size // options.images
            lines.append(f"| {name} | {size:,} | {' | '.join(f'{speed:,.0f}' for speed in medians)} |")
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.write(
        f"Pillow {PIL.__version__}, {cores} cores, {platform.machine()}, Python {platform.python_version()}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
