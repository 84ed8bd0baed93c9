import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.shared.egress import EgressPolicy
from app.shared.references import (
    DATA_PATTERN,
    MODEL_PATTERN,
    REGISTER_PATTERN,
    REMOTE,
    Reference,
    ReferenceRefused,
    parse_reference,
    path_of,
    require_allowed,
    shards_of,
)

HEX = "0123456789abcdef" * 4
ID = "01JD7R2M4N5P6Q7R8S9T0V1W2X"
KINDS = {"upload", "upl", "ds", "builtin", *REMOTE}
URLS = st.builds(
    lambda scheme, rest, fragment: f"{scheme}{rest}{fragment}",
    st.sampled_from(["https://", "s3://", "gs://", "az://", "file:///", "file://", "upload:", "upl_", "ds_", "S3://"]),
    st.text(string.ascii_lowercase + "/.%2e@:?#[]\\ é\x00", max_size=40),
    st.sampled_from(["", "#", f"#sha256={HEX}", "#sha256=abc", f"#sha256={HEX.upper()}"]),
)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("upload:repair", Reference("upload", "repair")),
        (f"upl_{ID}", Reference("upl", f"upl_{ID}")),
        (f"ds_{ID}", Reference("ds", f"ds_{ID}")),
        ("builtin:digits", Reference("builtin", "digits")),
        (f"https://a.org/x.npz?sig=1#sha256={HEX}", Reference("https", "https://a.org/x.npz?sig=1", HEX)),
        ("s3://acme/signs/test.parquet", Reference("s3", "s3://acme/signs/test.parquet")),
        (f"file:///data/a%20b.npz#sha256={HEX}", Reference("file", "file:///data/a%20b.npz", HEX)),
    ],
)
def test_a_reference_means_one_thing(text, reference):
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "reference_not_supported"),
        ("upload:", "reference_not_supported"),
        ("upload:" + "x" * 191, "reference_not_supported"),
        ("upl_short", "reference_not_supported"),
        ("builtin:mnist", "reference_not_supported"),
        ("ftp://a/b", "reference_not_supported"),
        ("/etc/passwd", "reference_not_supported"),
        ("https://a.org/x.npz", "sha256_missing"),
        ("https://a.org/x.npz#v1", "reference_invalid"),
        (f"https:///x#sha256={HEX}", "reference_invalid"),
        ("https://[::1/x", "reference_invalid"),
        ("s3://acme", "reference_invalid"),
        ("s3://acme/a/../b", "reference_invalid"),
        ("s3://acme/a//b", "reference_invalid"),
        ("s3://user@acme/a", "reference_invalid"),
        ("s3://acme/a?versionId=1", "reference_invalid"),
        ("file://host/data", "reference_invalid"),
        ("file:///data/%2e%2e/etc", "reference_invalid"),
        ("file:///data/a%00b", "reference_invalid"),
        ("file:///data/ü", "reference_invalid"),
        ("s3://acme/a-{3..1}.tar", "reference_invalid"),
        ("s3://acme/a-{000..10}.tar", "reference_invalid"),
        ("s3://acme/a-{0..10000}.tar", "reference_invalid"),
        ("s3://acme/{0..1}/a-{0..1}.tar", "reference_invalid"),
        ("s3://acme/a-{0..1}.parquet", "reference_invalid"),
    ],
)
def test_what_means_nothing_says_so(text, code):
    with pytest.raises(ReferenceRefused) as caught:
        parse_reference(text)
    assert caught.value.code == code
    assert caught.value.hint


def test_a_range_of_shards_is_each_of_them_in_order():
    shards = shards_of(parse_reference(f"gs://acme/s-{{098..101}}.tar.gz#sha256={HEX}"))
    assert [shard.target for shard in shards] == [f"gs://acme/s-{n}.tar.gz" for n in ("098", "099", "100", "101")]
    for text in ("s3://acme/a{b}.npz", "s3://acme/a-{0..x}.tar", f"https://a.org/{{0..3}}.tar#sha256={HEX}"):
        assert [shard.target for shard in shards_of(parse_reference(text))] == [text.partition("#")[0]], "its name"


@pytest.mark.slow
@given(st.text() | URLS)
@example("https://[")
@example(f"https://[::1#sha256={HEX}")
def test_every_text_is_a_reference_or_refused(text):
    try:
        reference = parse_reference(text)
    except ReferenceRefused:
        return
    assert reference.kind in KINDS
    assert re.search(DATA_PATTERN, text)
    assert re.search(MODEL_PATTERN, text) or reference.kind in ("ds", "builtin")
    assert re.search(REGISTER_PATTERN, text) or reference.kind in ("upload", "ds")
    if reference.kind in REMOTE:
        fragment = f"#sha256={reference.sha256}" if reference.sha256 else ""
        assert parse_reference(reference.target + fragment) == reference
        assert reference.filename
        assert fragment or reference.kind != "https"
    if reference.kind == "file":
        assert path_of(reference).startswith("/")
        assert not {"..", ""} & set(path_of(reference).split("/")[1:])


def code_of(text: str) -> str | None:
    policy = EgressPolicy()
    try:
        require_allowed(parse_reference(text), roots=["/data/signs"], buckets=["s3://acme/signs"], policy=policy)
    except ReferenceRefused as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("file:///data/signs/a.npz", None),
        ("file:///data/signs", None),
        ("file:///data/signs2/a.npz", "reference_not_allowed"),
        ("file:///etc/passwd", "reference_not_allowed"),
        ("s3://acme/signs/a.npz", None),
        ("s3://acme/signs2/a.npz", "reference_not_allowed"),
        ("gs://acme/signs/a.npz", "reference_not_allowed"),
        (f"https://example.org/a.npz#sha256={HEX}", None),
        (f"https://127.0.0.1/a.npz#sha256={HEX}", "url_refused"),
        (f"https://user:secret@example.org/a.npz#sha256={HEX}", "url_invalid"),
    ],
)
def test_only_what_the_operator_opened_is_read(text, code):
    assert code_of(text) == code
