"""Where a dataset is: a reference from the spec becomes a file of this request, or a dataset the engine carries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archrepair_core.errors import DatasetError

BUILTIN_NAMES = ("digits",)


@dataclass(frozen=True)
class BuiltinDataset:
    """A dataset that comes with an installed library: `digits` is scikit-learn's 1,797 handwritten digits, 8×8."""

    name: str


def resolve_reference(reference: str, uploads: Mapping[str, Path]) -> Path | BuiltinDataset:
    """Find what a reference means. `uploads` maps whole references, of whatever kind, to files.

    Raises DatasetError for a part that was not sent, an unknown builtin, or a kind of reference not supported.
    """
    scheme, colon, name = reference.partition(":")
    if reference not in uploads and colon and scheme == "builtin":
        if name not in BUILTIN_NAMES:
            raise DatasetError(
                "builtin_unknown",
                f"there is no built-in dataset {name!r}",
                hint=f"use one of: {', '.join(f'builtin:{known}' for known in BUILTIN_NAMES)}",
            )
        return BuiltinDataset(name)
    if reference not in uploads and (not colon or scheme != "upload"):
        raise DatasetError(
            "reference_not_supported",
            f"dataset reference {reference!r} is not supported",
            hint="send the file with the request and refer to it as upload:NAME, or use builtin:digits",
        )
    if reference not in uploads:
        raise DatasetError(
            "upload_missing",
            f"the spec names {reference!r}, but no file of that name was sent; "
            f"files sent: {', '.join(sorted(uploads)) or 'none'}",
            hint=f"send the file as the part named {name!r}",
        )
    if not uploads[reference].is_file():
        raise DatasetError(
            "file_missing",
            f"{reference!r} should be the file {uploads[reference].name!r}, which does not exist",
            hint="check the path, or send the file again",
        )
    return uploads[reference]
