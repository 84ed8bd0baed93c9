"""Images as nested Arrow lists of pixels, as Hugging Face writes Array2D and Array3D, seen as one array.

Under such lists the pixels of all images already lie one after the other. Only the lengths of the lists are looked at:
where all are as in the first image, the pixels have its shape, and are neither copied nor touched one by one.
"""

from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from archrepair_core.errors import DatasetError

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
# H×W, and H×W×C or C×H×W.
DEPTHS = (2, 3)


def pixel_type(image_type: pa.DataType) -> np.dtype | None:
    """The integer or float type of the pixels in a column of nested lists; None for a column of anything else."""
    depth, inner = 0, _storage_type(image_type)
    while _is_list(inner):
        depth, inner = depth + 1, inner.value_type
    if depth not in DEPTHS or not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
        return None
    return np.dtype(inner.to_pandas_dtype())


def shape_of(image: pa.Array, row: int) -> tuple[int, ...]:
    """The lengths of the lists of the one image in this array, outermost first.

    Raises DatasetError naming the row when something is null, lists are empty, or lists side by side differ in length.
    """
    shape: tuple[int, ...] = ()
    level = _storage(image)
    if level.null_count:
        raise DatasetError("image_missing", f"row {row} has no image", hint="leave such rows out")
    while _is_list(level.type):
        lengths = sorted(pc.unique(pc.list_value_length(level)).to_pylist())
        if len(lengths) > 1:
            raise DatasetError(
                "image_ragged",
                f"image in row {row} is no rectangle: on axis {len(shape)} its lists have from {lengths[0]} to "
                f"{lengths[-1]} entries",
                hint="all lists side by side have to be of one length",
            )
        if lengths == [0]:
            raise DatasetError("empty", f"image in row {row} has no pixels", hint="send images of at least one pixel")
        shape += (lengths[0],)
        level = level.flatten()
        if level.null_count:
            what = "list" if _is_list(level.type) else "pixel"
            raise DatasetError(
                "pixel_missing",
                f"image in row {row} has a null in place of a {what}",
                hint="leave such rows out, or write the pixels that are missing",
            )
    return shape


def to_numpy(images: pa.Array, shape: tuple[int, ...], first_row: int) -> np.ndarray:
    """B images of one shape as B×shape, in the memory of the lists; `first_row` is the row of the first in the file.

    Raises DatasetError naming the row of an image that has another shape or none, see `shape_of`.
    """
    level, per_image = _storage(images), 1
    for length in shape:
        # The length of a null is null, and a NaN in numpy: unequal as well.
        odd = np.flatnonzero(pc.list_value_length(level).to_numpy(zero_copy_only=False) != length)
        if len(odd):
            _refuse(images, odd[0] // per_image, like=shape, first_row=first_row)
        level, per_image = level.flatten(), per_image * length
    if level.null_count:
        place = pc.index(level.is_null(), True).as_py() // per_image
        _refuse(images, place, like=shape, first_row=first_row)
    return level.to_numpy().reshape(len(images), *shape)


def _refuse(images: pa.Array, place: int, *, like: tuple[int, ...], first_row: int) -> NoReturn:
    row = first_row + int(place)
    found = shape_of(images.slice(place, 1), row)
    raise DatasetError(
        "mixed_sizes",
        f"image in row {row} has the shape {'×'.join(map(str, found))} where row 0 has {'×'.join(map(str, like))}",
        hint="bring all to one size; or write PNG instead of lists, and set preprocessing.resize to [height, width]",
    )


def _is_list(arrow_type: pa.DataType) -> bool:
    return any(is_one(arrow_type) for is_one in LISTS)


def _storage_type(arrow_type: pa.DataType) -> pa.DataType:
    """Where the process knows the extension a file names, Arrow wraps the lists in it."""
    return arrow_type.storage_type if isinstance(arrow_type, pa.BaseExtensionType) else arrow_type


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array
