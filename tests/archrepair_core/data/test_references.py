import pytest

from archrepair_core.data.references import BuiltinDataset, resolve_reference
from archrepair_core.errors import DatasetError


def test_an_upload_is_the_file_sent_under_that_name(tmp_path):
    file = tmp_path / "part-3"
    file.touch()
    assert resolve_reference("upload:repair", {"upload:repair": file}) == file


def test_a_builtin_needs_no_file():
    assert resolve_reference("builtin:digits", {}) == BuiltinDataset("digits")


@pytest.mark.parametrize(
    ("reference", "code", "said"),
    [
        ("upload:repiar", "dataset.upload_missing", "files sent: upload:repair, upload:test"),
        ("builtin:cifar10", "dataset.builtin_unknown", "'cifar10'"),
        ("s3://bucket/x.npz", "dataset.reference_not_supported", "s3://bucket/x.npz"),
        ("file:///etc/passwd", "dataset.reference_not_supported", "file:///etc/passwd"),
        ("/etc/passwd", "dataset.reference_not_supported", "/etc/passwd"),
        ("upload", "dataset.reference_not_supported", "'upload'"),
        ("", "dataset.reference_not_supported", "''"),
        ("upload:test", "dataset.file_missing", "'gone'"),
    ],
)
def test_a_reference_that_leads_nowhere_says_why_and_what_to_do(tmp_path, reference, code, said):
    (tmp_path / "there").touch()
    uploads = {"upload:repair": tmp_path / "there", "upload:test": tmp_path / "gone"}
    with pytest.raises(DatasetError) as caught:
        resolve_reference(reference, uploads)
    assert caught.value.code == code
    assert said in caught.value.detail
    assert caught.value.hint
