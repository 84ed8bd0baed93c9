"""Columns of metadata beside images: where, when or by what a picture was taken. Only those asked for are read.

A column is kept as one number per sample and a table of its different values, so its size does not depend on how long
they are; a column that is different for every sample slices nothing, and is refused while it is read.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from archrepair_core.errors import DatasetError

MAX_VALUES = 1000
MAX_VALUE_CHARACTERS = 200
MAX_LISTED = 20


@dataclass(frozen=True)
class Column:
    """Sample i has the value `values[codes[i]]`; None where it has none. `codes` is int32 [N]."""

    codes: np.ndarray
    values: tuple[str | None, ...]

    def take(self, indices: np.ndarray) -> "Column":
        """The column of the samples at `indices`."""
        return replace(self, codes=self.codes[indices])


class ColumnBuilder:
    """A column that grows by one value per sample."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._codes = array("i")
        self._known: dict[str | None, int] = {}

    def add(self, value: object) -> None:
        """The value of the next sample. Raises DatasetError for what is no single value, and for too many different."""
        if isinstance(value, dict | list | tuple):
            raise DatasetError(
                "column_type",
                f"the column {self._name!r} of sample {len(self._codes)} holds a {type(value).__name__}, not one value",
                hint="slice by a column of words, numbers or truth values",
            )
        self._codes.append(self._known.setdefault(_as_text(value), len(self._known)))
        if len(self._known) > MAX_VALUES:
            raise DatasetError(
                "column_too_varied",
                f"the column {self._name!r} has more than {MAX_VALUES} different values in the first "
                f"{len(self._codes)} samples",
                hint="slice by a column whose values many samples share, e.g. the hour instead of the time",
            )

    def column(self) -> Column:
        """All that was added."""
        return Column(np.array(self._codes, dtype=np.int32), tuple(self._known))


def encode_column(name: str, values: Iterable[object]) -> Column:
    """The column of these values, one per sample and in their order. Raises DatasetError as `ColumnBuilder.add`."""
    builder = ColumnBuilder(name)
    for value in values:
        builder.add(value)
    return builder.column()


def _as_text(value: object) -> str | None:
    """A value as people and JSON write it; None for nothing."""
    if value is None or value == "":
        return None
    return (str(value).lower() if isinstance(value, bool | np.bool_) else str(value))[:MAX_VALUE_CHARACTERS]


def check_columns(asked: Sequence[str], there: Collection[str]) -> None:
    """Raises DatasetError naming the columns there are when one that was asked for is not among them."""
    missing = [name for name in asked if name not in there]
    if missing:
        listed = ", ".join(map(repr, sorted(there)[:MAX_LISTED]))
        found = f"it has {listed}" if listed else "it has none"
        raise DatasetError(
            "column_unknown",
            f"evaluation.slices names the column {missing[0]!r}, which the data does not have; {found}",
            hint="columns are those of a Parquet file or of a manifest, keys of a .json beside each image, or further "
            "arrays of an .npz with one value per image",
        )
