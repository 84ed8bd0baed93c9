"""The zip layer: a file is a list of plainly stored records or it is refused, before anything is decompressed.

Two readers may see two different files in one zip (overlaps, gaps, duplicate names, a second directory). None of that
survives here: records follow each other from byte 0 to the directory, and the directory ends the file.
"""

import io
import itertools
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from archrepair_core.errors import ModelError

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_END_MAGIC, _END64_MAGIC, _LOCATOR64_MAGIC, _LOCAL_MAGIC = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x03\x04"

# Bit 3: sizes follow the data; bit 11: UTF-8 names; bits 1-2: deflate effort. Everything else is encryption or patches.
_FLAGS = 0x080E
_MAX_DESCRIPTOR_BYTES = 24
_CHUNK_BYTES = 1 << 20
# The top folder is the name of the file torch.jit.save wrote, so it may hold anything but separators and controls.
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f:]{1,255}(/[A-Za-z0-9_.\-]{1,200}){1,40}")

_RE_EXPORT = (
    "Export the model again with torch.jit.save(torch.jit.script(model.eval()), 'model.pt') and upload that file."
)

# First bytes of files that are often uploaded by mistake.
_FOREIGN = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"7z\xbc\xaf": "a 7z file",
    b"\x7fELF": "a program",
    b"TFL3": "a TensorFlow Lite model",
    b"GGUF": "a GGUF model",
}


@dataclass(frozen=True)
class ArchiveLimits:
    """How large an archive may be; the directory is held against these before any record is read."""

    file_bytes: int = 4 << 30
    total_bytes: int = 4 << 30
    num_records: int = 50_000
    directory_bytes: int = 16 << 20
    compression_ratio: int = 200
    # A syntax tree takes up to 200 times the memory of its text, an unpickled list 60 times. The code of known
    # models stays below 1 MB in total, 20 kB in one file.
    source_bytes: int = 1 << 20
    sources_bytes: int = 16 << 20
    pickle_bytes: int = 8 << 20


@dataclass(frozen=True)
class Record:
    """One record: `name` without the top folder, and the directory entry that says where its bytes are."""

    name: str
    num_bytes: int
    entry: zipfile.ZipInfo

    @property
    def is_stored(self) -> bool:
        """Whether the entry is uncompressed."""
        return self.entry.compress_type == zipfile.ZIP_STORED


class RecordReader:
    """An open archive whose directory has been checked; use as a context manager.

    Raises ModelError from the constructor when the file is no well-formed archive within `limits`.
    """

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self._file = path.open("rb")
        try:
            self._zip, found = _open_zip(self._file, limits)
            self.records = {record.name: record for record in found}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()

    def chunks(self, record: Record) -> Iterator[bytes]:
        """The record's bytes in pieces of at most 1 MiB, checksum verified at the end."""
        num_bytes = 0
        try:
            with self._zip.open(record.entry) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    num_bytes += len(chunk)
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise ModelError("corrupt", f"Record {record.name!r} cannot be read: {error}.", hint=_RE_EXPORT) from error
        if num_bytes != record.num_bytes:
            detail = f"Record {record.name!r} holds {num_bytes} bytes; the directory says {record.num_bytes}."
            raise ModelError("corrupt", detail, hint=_RE_EXPORT)

    def read(self, record: Record, *, max_bytes: int) -> bytes:
        """All bytes of a small record; ModelError `archive_too_large` above `max_bytes`."""
        if record.num_bytes > max_bytes:
            detail = f"Record {record.name!r} is {record.num_bytes} bytes; at most {max_bytes} are read."
            raise ModelError("archive_too_large", detail, hint="Export a smaller model.")
        return b"".join(self.chunks(record))


def unsafe_archive(detail: str) -> ModelError:
    """The error for a zip that torch.jit.save does not write."""
    return ModelError("unsafe_archive", detail, hint=_RE_EXPORT)


def _open_zip(file: BinaryIO, limits: ArchiveLimits) -> tuple[zipfile.ZipFile, list[Record]]:
    num_bytes = file.seek(0, io.SEEK_END)
    if num_bytes > limits.file_bytes:
        detail = f"The file is {num_bytes} bytes; at most {limits.file_bytes} are accepted."
        raise ModelError("archive_too_large", detail, hint="Export a smaller model.")
    _check_first_bytes(file, num_bytes)
    directory_start = _find_directory(file, num_bytes, limits)
    file.seek(0)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise unsafe_archive(f"The zip directory cannot be read: {error}.") from error
    entries = archive.infolist()
    _check_sizes(entries, limits)
    _check_names(entries)
    _check_layout(file, entries, directory_start)
    return archive, [Record(entry.filename.split("/", 1)[1], entry.file_size, entry) for entry in entries]


def _check_first_bytes(file: BinaryIO, num_bytes: int) -> None:
    file.seek(0)
    head = file.read(16)
    if head.startswith(_LOCAL_MAGIC):
        return
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        detail = "The file is a raw Python pickle (legacy torch.save), which would run code when loaded."
        raise pickle_not_torchscript(detail)
    if num_bytes == 0:
        raise ModelError("not_torchscript", "The file is empty.", hint=_RE_EXPORT)
    kind = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), "not a zip archive")
    if head[8:9] == b"{":
        kind = "probably a safetensors file (weights without a model)"
    detail = f"The file is no TorchScript archive: it is {kind} (first bytes {head[:4].hex()})."
    raise ModelError("not_torchscript", detail, hint=_RE_EXPORT)


def pickle_not_torchscript(detail: str) -> ModelError:
    """The error for what torch.save writes: a state_dict or an eager model."""
    hint = "A state_dict or eager pickle has no program. Load it in your code, then torch.jit.script(model).save(path)."
    return ModelError("pickle_not_torchscript", detail, hint=hint)


def _find_directory(file: BinaryIO, num_bytes: int, limits: ArchiveLimits) -> int:
    """Where the central directory starts; it must run up to the end record, which must end the file."""
    tail_start = max(0, num_bytes - _END.size)
    file.seek(tail_start)
    tail = file.read(_END.size)
    if len(tail) < _END.size or not tail.startswith(_END_MAGIC):
        raise _no_end_record(file, num_bytes)
    fields = _END.unpack(tail)[1:]
    end, fields = _read_end64(file, tail_start, fields)
    disk, start_disk, on_disk, count, size, start, comment = fields
    if count > limits.num_records or size > limits.directory_bytes:
        detail = f"The archive lists {count} records in {size} bytes; at most {limits.num_records} are accepted."
        raise ModelError("archive_too_large", detail, hint="Export a smaller model.")
    if (disk, start_disk, comment) != (0, 0, 0) or on_disk != count or start + size != end:
        raise unsafe_archive(
            "The zip end record does not describe this file (comment, several disks or moved directory)."
        )
    return start


def _no_end_record(file: BinaryIO, num_bytes: int) -> ModelError:
    file.seek(max(0, num_bytes - (1 << 16) - _END.size))
    if _END_MAGIC in file.read():
        return unsafe_archive("Bytes follow the zip directory (a comment or appended data).")
    detail = f"The zip archive is cut off after {num_bytes} bytes: it has no directory."
    return ModelError("truncated", detail, hint="Upload the file again; compare its size and sha256 with the original.")


def _read_end64(file: BinaryIO, end: int, fields: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Where the directory must end, and the end fields: torch always writes the zip64 end record too."""
    start = end - _LOCATOR64.size - _END64.size
    file.seek(max(start, 0))
    tail = file.read(_END64.size + _LOCATOR64.size)
    if start < 0 or not tail[_END64.size :].startswith(_LOCATOR64_MAGIC):
        return end, fields
    magic, record_size, _, _, *wide = _END64.unpack(tail[: _END64.size])
    _, locator_disk, located, _ = _LOCATOR64.unpack(tail[_END64.size :])
    agrees = all(narrow in (value, 0xFFFF, 0xFFFFFFFF) for narrow, value in zip(fields, wide, strict=False))
    if magic != _END64_MAGIC or record_size != _END64.size - 12 or (locator_disk, located) != (0, start) or not agrees:
        raise unsafe_archive("The zip64 end record does not describe this file.")
    return start, (*wide, fields[-1])


def _check_sizes(entries: list[zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    total = sum(entry.file_size for entry in entries)
    if total > limits.total_bytes:
        detail = f"The archive unpacks to {total} bytes; at most {limits.total_bytes} are accepted."
        raise ModelError("zip_bomb", detail, hint="Export a smaller model.")
    for entry in entries:
        if entry.file_size > limits.compression_ratio * max(entry.compress_size, 1):
            detail = f"Record {entry.filename!r} unpacks from {entry.compress_size} to {entry.file_size} bytes."
            raise ModelError("zip_bomb", detail, hint=_RE_EXPORT)


def _check_names(entries: list[zipfile.ZipInfo]) -> None:
    if not any(entry.filename.endswith(("/data.pkl", "/archive_format")) for entry in entries):
        names = ", ".join(entry.filename for entry in entries[:4])
        detail = f"The file is a zip archive, but no TorchScript: it holds {names}."
        raise ModelError("not_torchscript", detail, hint=_RE_EXPORT)
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name != entry.orig_filename or not _NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
            detail = f"Record name {entry.orig_filename!r} is not allowed (path traversal or odd characters)."
            raise unsafe_archive(detail)
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise unsafe_archive(f"Record {name!r} is a link or another special file.")
        if name.casefold() in seen:
            raise unsafe_archive(f"Record {name!r} occurs twice.")
        seen.add(name.casefold())
    folders = {entry.filename.split("/", 1)[0] for entry in entries}
    if len(folders) > 1:
        raise unsafe_archive(f"The archive has {len(folders)} top folders {sorted(folders)[:4]}; TorchScript has one.")


def _check_layout(file: BinaryIO, entries: list[zipfile.ZipInfo], directory_start: int) -> None:
    """Records must follow each other without overlap or hidden bytes, and agree with their local headers."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    starts = [entry.header_offset for entry in ordered] + [directory_start]
    if starts[0] != 0:
        raise unsafe_archive("Bytes precede the first record.")
    for entry, (start, following) in zip(ordered, itertools.pairwise(starts), strict=True):
        end = start + _local_header_bytes(file, entry) + entry.compress_size
        if end > following:
            raise unsafe_archive(f"Record {entry.filename!r} overlaps the next one.")
        if following - end > _MAX_DESCRIPTOR_BYTES:
            raise unsafe_archive(f"{following - end} bytes after record {entry.filename!r} belong to no record.")


def _local_header_bytes(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    if entry.flag_bits & ~_FLAGS:
        raise unsafe_archive(f"Record {entry.filename!r} is encrypted or uses flags {entry.flag_bits:#x}.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise unsafe_archive(f"Record {entry.filename!r} uses compression method {entry.compress_type}.")
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise unsafe_archive(
            f"Record {entry.filename!r} is stored in {entry.compress_size} of {entry.file_size} bytes."
        )
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size:
        raise unsafe_archive(f"Record {entry.filename!r} lies outside the file.")
    magic, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
    name = file.read(name_bytes)
    if magic != _LOCAL_MAGIC or (flags, method) != (entry.flag_bits, entry.compress_type):
        raise unsafe_archive(f"Record {entry.filename!r} disagrees with its local header.")
    if name != entry.filename.encode():
        raise unsafe_archive(f"Record {entry.filename!r} is called {name!r} in its local header.")
    return _LOCAL.size + name_bytes + extra_bytes
