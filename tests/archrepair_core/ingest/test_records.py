import struct
import time
import zipfile
from pathlib import Path

import pytest

from archrepair_core.errors import ModelError
from archrepair_core.ingest.records import ArchiveLimits, RecordReader


def refusal(path: Path, **limits: int) -> ModelError:
    with pytest.raises(ModelError) as caught, RecordReader(path, ArchiveLimits(**limits)):
        pass
    assert caught.value.hint
    return caught.value


def zip_of(path: Path, *records: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        # After the others, so that tests may count bytes from the first record.
        for name, data in records:
            archive.writestr(name, data)
        archive.writestr(f"{records[0][0].split('/')[0] or 'm'}/data.pkl", b"")
    return path


def patched(path: Path, old: bytes, new: bytes, count: int = -1) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, count))
    return path


def test_a_plain_archive_is_read_record_by_record(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/one", b"1" * 10), ("m/dir/two", b"2"), compression=zipfile.ZIP_DEFLATED)
    with RecordReader(path, ArchiveLimits()) as reader:
        assert list(reader.records) == ["one", "dir/two", "data.pkl"]
        assert reader.read(reader.records["one"], max_bytes=10) == b"1" * 10
        with pytest.raises(ModelError, match="at most 9"):
            reader.read(reader.records["one"], max_bytes=9)


def test_the_top_folder_may_be_any_file_name(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("modèle final (2)/version", b"3"))
    with RecordReader(path, ArchiveLimits()) as reader:
        assert list(reader.records) == ["version", "data.pkl"]


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        (b"", "model.not_torchscript", "empty"),
        (bytes(range(200)), "model.not_torchscript", "00010203"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "model.not_torchscript", "Keras"),
        (struct.pack("<Q", 20) + b'{"w":{"dtype":"F32"}}', "model.not_torchscript", "safetensors"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "model.pickle_not_torchscript", "pickle"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, code, word):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    error = refusal(path)
    assert error.code == code
    assert word in error.detail


def test_a_cut_off_archive_is_called_truncated(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/data", bytes(5000)))
    path.write_bytes(path.read_bytes()[:3000])
    assert refusal(path).code == "model.truncated"


def test_bytes_after_the_directory_are_refused(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/data", b"x"))
    path.write_bytes(path.read_bytes() + b"tail")
    assert refusal(path).code == "model.unsafe_archive"


def test_a_comment_is_refused(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/data", b"x"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"hello"
    assert refusal(path).code == "model.unsafe_archive"


@pytest.mark.parametrize("name", ["../m/x", "m/../../x", "/m/x", "m/./x", "m//x", "m/x\\y", "m/a b", "top", "m/\x7f"])
def test_odd_names_and_path_traversal_are_refused(tmp_path, name):
    assert refusal(zip_of(tmp_path / "a.pt", (name, b"x"))).code == "model.unsafe_archive"


def test_a_zip_of_something_else_is_no_torchscript(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.npy", b"")
    error = refusal(path)
    assert error.code == "model.not_torchscript"
    assert "weights.npy" in error.detail


def test_duplicate_names_are_refused_also_in_another_case(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/Data.pkl", b"y"))
    assert "twice" in refusal(path).detail
    assert "twice" in refusal(patched(path, b"m/Data.pkl", b"m/data.pkl")).detail


def test_two_top_folders_are_refused(tmp_path):
    assert "top folders" in refusal(zip_of(tmp_path / "a.pt", ("m/a", b""), ("n/a", b""))).detail


def test_a_ten_gigabyte_bomb_is_refused_from_its_directory_alone(tmp_path):
    megabyte = bytes(1_000_000)
    path = zip_of(tmp_path / "a.pt", *((f"m/{i}", megabyte) for i in range(3)), compression=zipfile.ZIP_DEFLATED)
    # The sizes are claims of the directory; reading them must be enough.
    data = path.read_bytes()
    directory = data.index(b"PK\x01\x02")
    claimed = data[directory:].replace(struct.pack("<L", 1_000_000), struct.pack("<L", 3_600_000_000))
    path.write_bytes(data[:directory] + claimed)
    start = time.perf_counter()
    error = refusal(path)
    assert time.perf_counter() - start < 0.1
    assert error.code == "model.zip_bomb"
    assert "10800000000 bytes" in error.detail
    assert refusal(path, total_bytes=1 << 40).code == "model.zip_bomb", "the ratio alone must refuse it"


def test_many_records_adding_up_to_too_much_are_a_bomb(tmp_path):
    path = zip_of(tmp_path / "a.pt", *((f"m/{i}", bytes(1000)) for i in range(10)))
    assert refusal(path, total_bytes=9_999).code == "model.zip_bomb"
    assert refusal(path, num_records=10).code == "model.archive_too_large"
    assert refusal(path, file_bytes=9_999).code == "model.archive_too_large"
    assert refusal(path, directory_bytes=100).code == "model.archive_too_large"


def test_encrypted_records_are_refused(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/data", b"x"))
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    path.write_bytes(data)
    assert "encrypted" in refusal(path).detail


def test_overlapping_records_are_refused(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/a", b"x" * 100), ("m/b", b"y"))
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02")
    # The first record claims to reach into the second.
    grown = bytearray(data)
    grown[entry + 20 : entry + 28] = struct.pack("<2L", 140, 140)
    path.write_bytes(grown)
    assert "overlaps" in refusal(path).detail


def test_bytes_that_belong_to_no_record_are_refused(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/a", b"x" * 100))
    entry = path.read_bytes().index(b"PK\x01\x02")
    shrunk = bytearray(path.read_bytes())
    shrunk[entry + 20 : entry + 28] = struct.pack("<2L", 10, 10)
    path.write_bytes(shrunk)
    assert "belong to no record" in refusal(path).detail


def test_a_local_header_of_another_name_is_refused(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/abc", b"x"))
    assert "local header" in refusal(patched(path, b"m/abc", b"m/xyz", 1)).detail


def test_a_flipped_byte_in_a_record_is_found_by_its_checksum(tmp_path):
    path = patched(zip_of(tmp_path / "a.pt", ("m/a", b"hello")), b"hello", b"hullo")
    with RecordReader(path, ArchiveLimits()) as reader, pytest.raises(ModelError) as caught:
        reader.read(reader.records["a"], max_bytes=100)
    assert caught.value.code == "model.corrupt"


def test_a_record_longer_than_the_directory_says_is_never_unpacked_further(tmp_path):
    path = zip_of(tmp_path / "a.pt", ("m/a", bytes(1_000_000)), compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<L", 1000)
    path.write_bytes(data)
    with RecordReader(path, ArchiveLimits()) as reader, pytest.raises(ModelError) as caught:
        reader.read(reader.records["a"], max_bytes=10_000)
    assert caught.value.code == "model.corrupt"
