import mimetypes

import pytest

from app.shared.media_types import media_type_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [("repaired.pt", "application/octet-stream"), ("report.json", "application/json"), ("a.b.LOG", "text/plain"),
     ("model.onnx", "application/octet-stream"), ("no-suffix", "application/octet-stream")],
)  # fmt: skip
def test_the_media_type_is_the_same_on_every_machine(name, expected, monkeypatch):
    monkeypatch.setattr(mimetypes, "guess_type", lambda *_: ("application/vnd.snesdev-page-table", None))
    assert media_type_of(name) == expected
