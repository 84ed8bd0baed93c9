"""Which torch wrote a file, as far as the file tells, and which files are newer than what is understood here.

Sources: `caffe2/serialize/versions.h` for TorchScript archives, `torch/_export/serde/schema.py` for .pt2 files.
"""

from types import MappingProxyType
from typing import Any

from archrepair_core.errors import ModelError

# An archive names the lowest format version that fits its operators, so today's torch writes 3 for most models: each
# version tells the oldest release that can have written the file, never the newest.
_TORCHSCRIPT_WRITERS = MappingProxyType(
    {
        3: "torch 1.5 or newer",
        4: "torch 1.6 or newer",
        5: "torch 1.6 or newer",
        6: "torch 1.6 or newer",
        7: "torch 1.11 or newer",
        8: "torch 1.11 or newer",
        9: "torch 1.11 or newer",
        10: "torch 1.12 or newer",
    }
)
# The major number changes when older readers would misread a file, the minor one when they would miss something new.
_EXPORT_SCHEMA_MAJOR, _EXPORT_SCHEMA_MINOR = 8, 20
_EXPORT_OPERATOR_SET = 10


def torchscript_writer(format_version: int) -> str:
    """The oldest release that can have written this TorchScript format version; files do not say more."""
    return _TORCHSCRIPT_WRITERS[format_version]


def check_torchscript_version(text: bytes) -> int:
    """The format version of an archive. Raises ModelError `format_not_supported` with what to do about it."""
    known = _TORCHSCRIPT_WRITERS.keys()
    version = int(text) if text.isdigit() and len(text) <= 3 else 0
    if version in known:
        return version
    detail = f"Format version {text[:20]!r} is not supported; versions {min(known)} to {max(known)} are."
    if version > max(known):
        hint = "It is newer than this service knows: upgrade the service, or save the model with an older torch."
    else:
        hint = "Load the model with a torch release that supports it, and save it again with torch.jit.save."
    raise ModelError("format_not_supported", detail, hint=hint)


def check_export_version(data: Any) -> tuple[int, int]:
    """The (major, minor) schema version of a parsed program. Raises ModelError with the remedy."""
    fields = data if isinstance(data, dict) else {}
    version = fields.get("schema_version")
    major, minor = (version.get(part) for part in ("major", "minor")) if isinstance(version, dict) else (None, None)
    writer = f"torch {str(fields.get('torch_version', 'unknown'))[:60]}"
    if type(major) is not int or type(minor) is not int:
        hint = "Save it again with torch.export.save of torch 2.9 or newer."
        raise ModelError("format_not_supported", "The .pt2 file names no schema version.", hint=hint)
    if (major, minor) > (_EXPORT_SCHEMA_MAJOR, _EXPORT_SCHEMA_MINOR):
        newest = f"{_EXPORT_SCHEMA_MAJOR}.{_EXPORT_SCHEMA_MINOR}"
        raise _too_new(f"The .pt2 file has schema version {major}.{minor} ({writer})", newest)
    if major < _EXPORT_SCHEMA_MAJOR:
        detail = f"The .pt2 file has schema version {major}.{minor} ({writer}); {_EXPORT_SCHEMA_MAJOR} is needed."
        hint = "Export the model again and save it with torch 2.9 or newer."
        raise ModelError("format_not_supported", detail, hint=hint)
    operators = fields.get("opset_version")
    aten = operators.get("aten") if isinstance(operators, dict) else None
    if type(aten) is int and aten > _EXPORT_OPERATOR_SET:
        raise _too_new(f"The .pt2 file uses version {aten} of torch's operators ({writer})", str(_EXPORT_OPERATOR_SET))
    return major, minor


def _too_new(what: str, newest: str) -> ModelError:
    hint = "Upgrade the service, or export and save the model with torch 2.14 or older."
    return ModelError("format_not_supported", f"{what}; {newest} is the newest that is supported.", hint=hint)
