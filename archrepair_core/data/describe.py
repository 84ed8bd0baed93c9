"""What is in a dataset, before any model: read whole, like for a repair, and counted."""

from pathlib import Path
from typing import Any

import numpy as np

from archrepair_core.data.formats import format_of, load_dataset

MAX_CLASSES_LISTED = 10_000


def describe_dataset(reference: str, files: dict[str, Path], work_dir: Path) -> dict[str, Any]:
    """Facts of a dataset as JSON data. Raises DatasetError for what a repair could not read either.

    `content_sha256` is of pixels and labels: the same samples have the same one in any format.
    """
    found = load_dataset(reference, files, name="dataset", work_dir=work_dir)
    classes, counts = np.unique(found.labels, return_counts=True) if found.labelled else ((), ())
    listed = zip(classes[:MAX_CLASSES_LISTED], counts[:MAX_CLASSES_LISTED], strict=True)
    return {
        "format": format_of(files[reference]) if reference in files else "builtin",
        "num_samples": len(found),
        "image_shape": list(found.images.shape[1:]),
        "pixel_type": str(found.images.dtype),
        "labelled": found.labelled,
        "num_classes": len(classes) if found.labelled else None,
        "classes": {str(name): int(count) for name, count in listed} if found.labelled else None,
        "content_sha256": found.digest,
    }
