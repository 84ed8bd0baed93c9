"""Labels that are words: folders, strings, what stands beside an image. A model knows its outputs by number only."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from archrepair_core.data.images import check_labels_usable
from archrepair_core.errors import DatasetError

# The names of the model's outputs in their order. None where nobody has told; then words are refused, for the order of
# a model's outputs is not in its file. `as_found` numbers the words as they sort, to count them.
ClassNames = Sequence[str] | Literal["as_found"] | None
MAX_NAMES_SHOWN = 10
MAX_NAME_CHARACTERS = 200


def labels_of_words(
    words: Iterable[str], class_names: ClassNames, *, of: str = "labels"
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The class of each word, and the names in order where the words are no numbers.

    Raises DatasetError `class_names_missing` for words without names, `class_unknown` for one that is not among them.
    """
    found = list(words)
    if odd := next((word for word in set(found) if len(word) > MAX_NAME_CHARACTERS or not word.isprintable()), None):
        raise DatasetError(
            "class_name_unusable",
            f"{odd[:50]!r} among the {of} is longer than {MAX_NAME_CHARACTERS} characters or cannot be printed",
            hint="give the classes plain names",
        )
    if class_names is None or class_names == "as_found":
        if all(word.isdecimal() and word.isascii() for word in set(found)):
            return check_labels_usable(np.array([min(int(word), 2**31) for word in found], dtype=np.int64)), None
        names = tuple(sorted(set(found)))
        if class_names is None:
            raise DatasetError(
                "class_names_missing",
                f"the {of} are called {_listed(names)}, and nothing tells which output of the model each of them is",
                hint="name the model's outputs in their order in model.class_names; after training with torchvision's "
                f"ImageFolder or sorted names that is [{_listed(names)}]",
            )
    else:
        names = tuple(class_names)
    places = {name: place for place, name in enumerate(names)}
    if unknown := sorted(set(found) - places.keys()):
        raise DatasetError(
            "class_unknown",
            f"the {of} {_listed(unknown)} are not among model.class_names, which are {_listed(names)}",
            hint="correct the one or the other; capitals count",
        )
    return np.array([places[word] for word in found], dtype=np.int64), names


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:50]) for name in names[:MAX_NAMES_SHOWN])
    return shown + (f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else "")
