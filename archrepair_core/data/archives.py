"""Walk through zip and tar archives of strangers: file by file, nothing unpacked to disk, nothing whole in memory."""

import bz2
import gzip
import io
import lzma
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from archrepair_core.data.images import reason_of
from archrepair_core.errors import DatasetError

ZIP_MAGIC = b"PK\x03\x04"
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
# First bytes → how to open what is compressed as a whole.
COMPRESSIONS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
# One member that is read whole is an image, or a line of text about one.
MAX_MEMBER_BYTES = 64 * 2**20
MAX_MEMBERS = 5_000_000
# Of one member of a zip. Small ones may compress as well as they like: blank images do.
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 * 2**20
ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What is no data, whatever it is called: of file managers, and hidden files.
_JUNK_FOLDERS = frozenset({"__MACOSX"})
# What tarfile, zipfile, their decompressors and numpy's parser of headers raise for bytes that are not what they claim.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    KeyError,
    TypeError,
    MemoryError,
    # Of the headers of arrays.
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
)


@dataclass(frozen=True)
class Member:
    """A file in an archive. Its bytes can be had until the walk goes on."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]

    @property
    def suffix(self) -> str:
        """In lower case, without the dot."""
        return self.path.suffix.lower().removeprefix(".")

    def read(self) -> bytes:
        """All of it. Raises DatasetError for one too large to be an image."""
        if self.size > MAX_MEMBER_BYTES:
            raise DatasetError(
                "member_too_large",
                f"{str(self.path)!r} in the archive has {self.size} bytes, more than {MAX_MEMBER_BYTES}",
                hint="send smaller images",
            )
        with reading("archive"), self.open() as stream:
            content = stream.read()
            if len(content) != self.size:
                raise EOFError(f"{str(self.path)!r} ends after {len(content)} of its {self.size} bytes")
        return content


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar archive, or compressed as a whole, as only tar archives are here."""
    return head[TAR_MAGIC_AT:].startswith(TAR_MAGIC) or any(head.startswith(magic) for magic in COMPRESSIONS)


def walk(path: Path, *, max_bytes: int) -> Iterator[Member]:
    """The files of a zip or tar archive in their order. Links and what file managers leave behind are left out.

    Raises DatasetError for a broken archive, and for one whose files have more than `max_bytes` together.
    """
    total, count = 0, 0
    with reading("archive"):
        for member in _members(path):
            total, count = total + member.size, count + 1
            if total > max_bytes:
                raise DatasetError(
                    "too_large",
                    f"the files of the archive have more than the {max_bytes} bytes allowed",
                    hint="send fewer or smaller images",
                )
            if count > MAX_MEMBERS:
                raise DatasetError(
                    "too_large", f"the archive holds more than {MAX_MEMBERS} files", hint="send it in fewer files"
                )
            if not _is_junk(member.path):
                yield member


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Every way a broken archive shows itself becomes one error, that `what` in it cannot be read."""
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            "archive_broken",
            f"the {what} cannot be read: {reason_of(error)}",
            hint="it may be truncated: write it again and compare its size",
        ) from error


def _members(path: Path) -> Iterator[Member]:
    with path.open("rb") as file:
        head = file.read(len(ZIP_MAGIC))
    yield from (_zip_members(path) if head == ZIP_MAGIC else _tar_members(path))


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                refuse_bomb(info)
                yield Member(PurePosixPath(info.filename), info.file_size, _opener(archive, info))


def _opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(info)


def refuse_bomb(info: zipfile.ZipInfo) -> None:
    """Raises DatasetError for a member that unpacks to far more than it is, or in a way that is not supported."""
    if info.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * info.compress_size):
        raise DatasetError(
            "archive_bomb",
            f"{info.filename!r} unpacks from {info.compress_size} to "
            f"{info.file_size} bytes, more than {MAX_RATIO} times its size",
            hint="save it uncompressed",
        )
    if info.compress_type not in ZIP_COMPRESSIONS or info.flag_bits & 1:
        raise DatasetError(
            "archive_unsupported",
            f"{info.filename!r} is encrypted or compressed by a method other than deflate",
            hint="store it, or compress it by deflate",
        )


class _Capped(io.RawIOBase):
    """A stream of which nobody reads more at once than a member may have: headers of tar may claim gigabytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """As `RawIOBase.read`; ValueError for more than a member may have, or for all there is."""
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise ValueError(f"a header says that {size} bytes belong to it")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As `RawIOBase.seek`: the new position in bytes."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """The position in bytes."""
        return self._stream.tell()


def _tar_members(path: Path) -> Iterator[Member]:
    """Several archives one after the other, as shards are joined, are one."""
    with ExitStack() as stack:
        stream = _Capped(stack.enter_context(_uncompressed(path)))
        yield from _members_of_one_tar(stream)
        while _another_begins(stream):
            yield from _members_of_one_tar(stream)


def _members_of_one_tar(stream: _Capped) -> Iterator[Member]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (info := archive.next()) is not None:
            if info.isfile():
                yield Member(PurePosixPath(info.name), info.size, _extractor(archive, info))
            archive.members.clear()  # type: ignore[attr-defined]  # or it keeps a kilobyte for each
        # It ends quietly where a header is cut off, too. A whole archive ends with a block of zeros.
        if stream.tell() < archive.offset + tarfile.BLOCKSIZE:
            raise EOFError("it has no end")


def _another_begins(stream: _Capped) -> bool:
    """Whether more than zeros follows; the stream then stands where it begins."""
    while block := stream.read(tarfile.BLOCKSIZE):
        if block.strip(b"\0"):
            stream.seek(-len(block), io.SEEK_CUR)
            return True
    return False


def _uncompressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(max(map(len, COMPRESSIONS)))
    opened = next((open_ for magic, open_ in COMPRESSIONS.items() if head.startswith(magic)), None)
    return opened(path) if opened else path.open("rb")


def _extractor(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def extract() -> Any:
        stream = archive.extractfile(info)
        assert stream is not None, "it is a file"
        return stream

    return extract


def _is_junk(path: PurePosixPath) -> bool:
    return path.name.startswith(".") or path.name == "Thumbs.db" or not _JUNK_FOLDERS.isdisjoint(path.parts)
