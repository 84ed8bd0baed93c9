"""Hostile zips: two readers see two files, a small file unpacks to a large one, a record lies elsewhere."""

import io
import struct
import zipfile
from collections.abc import Callable

from tests.archrepair_core.hostile.archives import CODE, FOLDER, Table, archive, records

_DIRECTORY, _END = b"PK\x01\x02", b"PK\x05\x06"


def patched(at: Callable[[bytes], int], change: bytes) -> bytes:
    """The plain archive with some bytes overwritten."""
    data = bytearray(archive(records()))
    position = at(bytes(data))
    data[position : position + len(change)] = change
    return bytes(data)


def directory_entry(data: bytes, name: str) -> int:
    """Where the directory tells of the record."""
    position = data.index(_DIRECTORY)
    while data[position + 46 :][: len(name) + len(FOLDER) + 1] != f"{FOLDER}/{name}".encode():
        position = data.index(_DIRECTORY, position + 4)
    return position


def of_entry(name: str, offset: int, change: bytes) -> bytes:
    """The plain archive with a field of one directory entry changed."""
    return patched(lambda data: directory_entry(data, name) + offset, change)


def compressed(method: int, content: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for name, data in content.items():
            target.writestr(f"{FOLDER}/{name}", data)
    return file.getvalue()


def symlink(target: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, data in records().items():
            zipped.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}"), data)
        link = zipfile.ZipInfo(f"{FOLDER}/extra/link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        zipped.writestr(link, target)
    return file.getvalue()


def commented(comment: bytes) -> bytes:
    file = io.BytesIO(archive(records()))
    with zipfile.ZipFile(file, "a") as zipped:
        zipped.comment = comment
    return file.getvalue()


def with_zip64_end(**wrong: int) -> bytes:
    """The plain archive with the zip64 end record torch writes, one field of it wrong."""
    data = archive(records())
    end = data.index(_END)
    _, _, _, _, count, size, start, _ = struct.unpack("<4s4H2LH", data[end:])
    fields = {"count": count, "size": size, "start": start, "located": end} | wrong
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, fields["count"], fields["count"], fields["size"],
                       fields["start"])  # fmt: skip
    return data[:end] + wide + struct.pack("<4sLQL", b"PK\x06\x07", 0, fields["located"], 1) + data[end:]


def with_zip64_sizes() -> bytes:
    """A record whose size stands in a zip64 field, four exabytes of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, data in records().items():
            target.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}"), data)
        info = zipfile.ZipInfo(f"{FOLDER}/extra/large")
        target.writestr(info, b"x")
        info.file_size = info.compress_size = 1 << 62
    return file.getvalue()


def added(*extra: tuple[str, bytes]) -> bytes:
    return archive([*records().items(), *extra])


def renamed(name: bytes) -> bytes:
    """The archive with an extra record of this name, as long as `net/extra/x`."""
    return added(("extra/x", b"x")).replace(b"net/extra/x", name)


ZIPS: Table = {
    "the same record twice": (
        lambda _: added(("extra/y", b"x")).replace(b"net/extra/y", b"net/version"), "unsafe_archive", "twice"),
    "the same record twice, in another case": (
        lambda _: added(("DATA.PKL", b"x")), "unsafe_archive", "twice"),
    "a name that climbs out of the archive": (lambda _: renamed(b"../../etc/x"), "unsafe_archive", "../../etc/x"),
    "an absolute name": (lambda _: renamed(b"/etc/cron.d"), "unsafe_archive", "/etc/cron.d"),
    "a name with a backslash": (lambda _: renamed(b"net\\extra\\x"), "unsafe_archive", "not allowed"),
    "a name with a drive": (lambda _: renamed(b"C:/extra/xy"), "unsafe_archive", "not allowed"),
    "a name with a zero byte": (lambda _: renamed(b"net/extr\x00/x"), "unsafe_archive", "not allowed"),
    "a name that is not UTF-8": (lambda _: renamed(b"net/extra/\xff"), "unsafe_archive", "not allowed"),
    "a symbolic link": (lambda canary: symlink(canary.file), "unsafe_archive", "extra/link"),
    "two top folders": (lambda _: renamed(b"ten/extra/x"), "unsafe_archive", "top folders"),
    "a record torch never writes": (lambda _: added(("setup.py", b"x")), "unsafe_archive", "setup.py"),
    "code outside the code folder": (lambda _: added(("code/os.py", b"x")), "unsafe_archive", "code/os.py"),
    "a size smaller than the record": (
        lambda _: of_entry("data/0", 20, struct.pack("<2L", 16, 16)), "unsafe_archive", "belong to no record"),
    "a size larger than the record": (
        lambda _: of_entry("data/0", 20, struct.pack("<2L", 1 << 20, 1 << 20)), "unsafe_archive", "overlaps"),
    "a checksum that lies": (lambda _: of_entry("data.pkl", 16, bytes(4)), "corrupt", "data.pkl"),
    "an offset into another record": (
        lambda _: of_entry("data/0", 42, struct.pack("<L", 200)), "unsafe_archive", ""),
    "an offset outside the file": (
        lambda _: of_entry("byteorder", 42, struct.pack("<L", 1 << 30)), "unsafe_archive", ""),
    "two records in the same bytes": (
        lambda _: of_entry("version", 42, struct.pack("<L", 0)), "unsafe_archive", ""),
    "a zip64 end record elsewhere": (
        lambda _: with_zip64_end(located=1), "unsafe_archive", "zip64"),
    "a zip64 end record with another directory": (
        lambda _: with_zip64_end(start=0), "unsafe_archive", "zip64"),
    "a zip64 size of exabytes": (lambda _: with_zip64_sizes(), "zip_bomb", "unpacks to"),
    "a million records": (
        lambda _: with_zip64_end(count=1_000_000), "unsafe_archive", ""),
    "a zip bomb": (
        lambda _: compressed(zipfile.ZIP_DEFLATED, records() | {"extra/zeros": bytes(50 << 20)}), "zip_bomb", "zeros"),
    "compressed tensors": (
        lambda _: compressed(zipfile.ZIP_DEFLATED, records()), "unsafe_archive", "compressed"),
    "an odd compression method": (
        lambda _: compressed(zipfile.ZIP_BZIP2, records()), "unsafe_archive", "compression method 12"),
    "encryption": (lambda _: of_entry("data.pkl", 8, b"\x01"), "unsafe_archive", "encrypted"),
    "several disks": (lambda _: patched(lambda data: data.index(_END) + 4, b"\x01"), "unsafe_archive", "disks"),
    "bytes after the directory": (lambda _: archive(records()) + b"MZ" * 10, "unsafe_archive", "appended"),
    "a program before the archive": (
        lambda canary: f"#!/bin/sh\ntouch {canary.file}\nexit\n".encode() + archive(records()),
        "not_torchscript", "2321"),
    "a program in the comment": (lambda _: commented(b"import os"), "unsafe_archive", "comment"),
    "an archive inside the archive": (
        lambda _: added(("extra/model.zip", archive(records()))), "unsafe_archive", "model.zip"),
    "an archive that is cut off": (lambda _: archive(records())[:-200], "truncated", "cut off"),
    "a plain pickle that runs a command": (
        lambda canary: f"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00touch {canary.file}tR.".encode("latin-1"),
        "pickle_not_torchscript", "pickle"),
    "a zip without a model": (
        lambda _: archive({"extra/data.pkl": b"x"}), "not_torchscript", "extra/data.pkl"),
    "code of 17 megabytes": (
        lambda _: archive(records() | {CODE.replace("net.py", f"n{i}.py"): b"#" * (1 << 20) for i in range(17)}),
        "archive_too_large", "code is"),
}  # fmt: skip
