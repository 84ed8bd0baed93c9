"""What is in a dataset, before any model: read whole, like for a repair, and counted."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from archrepair_core.data.duplicates import find_duplicates
from archrepair_core.data.formats import load_dataset

MAX_CLASSES_LISTED = 10_000
MAX_SKIPPED_LISTED = 20


def describe_dataset(reference: str, files: dict[str, Path], work_dir: Path) -> dict[str, Any]:
    """Facts of a dataset as JSON data. Raises DatasetError for what a repair could not read either.

    `content_sha256` is of pixels and labels: the same samples have the same one in any format.
    """
    found = load_dataset(reference, files, name="dataset", work_dir=work_dir, class_names="as_found")
    classes, counts = np.unique(found.labels, return_counts=True) if found.labelled else ((), ())
    names = [found.class_names[place] for place in classes] if found.class_names else [str(place) for place in classes]
    (twice,) = find_duplicates({"dataset": found})
    listed = zip(names[:MAX_CLASSES_LISTED], counts[:MAX_CLASSES_LISTED], strict=False)
    return {
        "format": found.format,
        "num_samples": len(found),
        "image_shape": list(found.images.shape[1:]),
        "pixel_type": str(found.images.dtype),
        "labelled": found.labelled,
        "num_classes": len(classes) if found.labelled else None,
        "classes": {name: int(count) for name, count in listed} if found.labelled else None,
        "content_sha256": found.digest,
        "num_skipped": len(found.skipped),
        "skipped": [asdict(image) for image in found.skipped[:MAX_SKIPPED_LISTED]],
        "duplicates": {"exact": twice.exact, "near": twice.near, "compared": twice.compared},
    }
