"""Where data is, as a spec says it in one string. Parsed here, and nowhere else.

upload:NAME             a part of the same request
upl_… · ds_…            a finished upload · a registered dataset
builtin:NAME            one that the engine carries
https://…#sha256=HEX    a file on the internet, which has to be that one
s3:// gs:// az://…      an object in a bucket the operator lists; #sha256=HEX may follow
file:///…               a file under a directory the operator lists; #sha256=HEX may follow

Of the last two, `shard-{000..011}.tar` is twelve tar archives, which are one when joined in this order.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from app.shared.egress import EgressError, EgressPolicy, check_url

UPLOAD = "upload:"
BUILTINS = ("builtin:digits",)
CLOUDS = ("s3", "gs", "az")
REMOTE = ("https", "file", *CLOUDS)
MAX_NAME_CHARACTERS = 190
MODEL_REFERENCE = "model/reference"
_ID = re.compile(r"(upl|ds)_[0-9A-Z]{26}")
_FRAGMENT = re.compile(r"sha256=([0-9a-f]{64})")
_SHARDS = re.compile(r"\{(\d{1,6})\.\.(\d{1,6})\}")
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
MAX_SHARDS = 10_000
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
# The same as patterns of JSON Schema: nothing else is a reference. Of URLs they say the form, not what may be read.
_DIGEST = "#sha256=[0-9a-f]{64}"
_HTTPS = 'https://[!"$-~]+'
_PLACES = (rf"(s3|gs|az)://[a-z0-9][a-z0-9._-]{{1,62}}/[^?#]+({_DIGEST})?", rf"file:(//)?/[^?#]+({_DIGEST})?")
_IN_SPEC = (rf"upload:[\s\S]{{1,{MAX_NAME_CHARACTERS}}}", "upl_[0-9A-Z]{26}", _HTTPS + _DIGEST, *_PLACES)
MODEL_PATTERN = f"^({'|'.join(_IN_SPEC)})$"
DATA_PATTERN = f"^({'|'.join((*_IN_SPEC, 'ds_[0-9A-Z]{26}', *BUILTINS))})$"
REGISTER_PATTERN = f"^({'|'.join(('upl_[0-9A-Z]{26}', f'{_HTTPS}({_DIGEST})?', *_PLACES, *BUILTINS))})$"
HINT = (
    "Use upload:NAME with a file part called NAME in this request, upl_… of a finished upload, ds_… of a registered "
    "dataset, https://…#sha256=HEX, s3://, gs://, az:// or file:/// where the operator allows it, or builtin:digits."
)


class ReferenceRefused(ValueError):
    """A reference that means nothing, or nothing that may be read. `code` is one word after `dataset.`."""

    def __init__(self, code: str, detail: str, *, hint: str = HINT) -> None:
        super().__init__(detail)
        self.code, self.detail, self.hint = code, detail, hint


@dataclass(frozen=True)
class Reference:
    """`kind` is a scheme, or `upl` or `ds`; `target` is what follows it, of a URL all without the fragment."""

    kind: str
    target: str
    sha256: str | None = None

    @property
    def filename(self) -> str:
        """The last step of a URL's path, for people."""
        name = unquote(urlsplit(self.target).path).rpartition("/")[2]
        return "".join(letter for letter in name if letter.isprintable())[-200:] or "data"

    @property
    def shown(self) -> str:
        """The target without its query, which may hold a signature."""
        return self.target.partition("?")[0]


def parse_reference(text: str) -> Reference:
    """What a reference means. Raises ReferenceRefused."""
    if _ID.fullmatch(text):
        return Reference(text.partition("_")[0], text)
    scheme, _, rest = text.partition(":")
    if scheme == "upload" and 0 < len(rest) <= MAX_NAME_CHARACTERS:
        return Reference("upload", rest)
    if text in BUILTINS:
        return Reference("builtin", rest)
    if scheme not in REMOTE:
        raise ReferenceRefused("reference_not_supported", f"{text[:200]!r} is not supported.")
    url, hash_sign, fragment = text.partition("#")
    match = _FRAGMENT.fullmatch(fragment)
    if hash_sign and match is None:
        detail = f"After the # of {_without_query(url)!r} must stand sha256= and 64 hexadecimal digits."
        raise ReferenceRefused("reference_invalid", detail)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ReferenceRefused("reference_invalid", "The URL has characters that must be percent-encoded.")
    reference = Reference(scheme, url, match.group(1) if match else None)
    _check_https(reference) if scheme == "https" else _check_place(reference)
    return reference


def _without_query(url: str) -> str:
    return url.partition("?")[0][:200]


def _check_https(reference: Reference) -> None:
    if not urlsplit_or_refuse(reference.target).hostname:
        raise ReferenceRefused("reference_invalid", f"{reference.shown!r} names no host.")
    if reference.sha256 is None:
        detail = f"{reference.shown!r} comes without a sha256: what a URL leads to can change."
        raise ReferenceRefused("sha256_missing", detail, hint="Write it after the URL: https://…#sha256=HEX")


def _check_place(reference: Reference) -> None:
    parts = urlsplit_or_refuse(reference.target)
    steps = unquote(parts.path).split("/")[1:]
    named = parts.netloc == "" if reference.kind == "file" else bool(_BUCKET.fullmatch(parts.netloc))
    if not named or parts.query or "?" in reference.target or not steps or {"", ".", ".."} & set(steps):
        form = "file:///directory/file" if reference.kind == "file" else f"{reference.kind}://bucket/path/of/the/file"
        raise ReferenceRefused("reference_invalid", f"{reference.shown!r} does not have the form {form}.")
    if not unquote(parts.path).isprintable():
        raise ReferenceRefused("reference_invalid", f"{reference.shown!r} names a path that cannot be printed.")
    if (match := _SHARDS.search(reference.target)) is not None:
        _check_shards(reference, *match.groups())


def _check_shards(reference: Reference, first: str, last: str) -> None:
    if not 0 <= int(last) - int(first) < MAX_SHARDS or len(first) > len(last) or reference.target.count("{") > 1:
        detail = f"{reference.shown!r} is no range of at most {MAX_SHARDS} shards."
        raise ReferenceRefused("reference_invalid", detail, hint="Write shard-{000..011}.tar, smaller number first.")
    if not reference.filename.lower().endswith(TAR_SUFFIXES):
        detail = f"{reference.shown!r} names shards that are not tar archives: only those can be joined."
        raise ReferenceRefused("reference_invalid", detail, hint="Write WebDataset shards, or one file.")


def shards_of(reference: Reference) -> list[Reference]:
    """What a reference stands for, in order: itself, or every shard of its range."""
    match = _SHARDS.search(reference.target) if reference.kind in (*CLOUDS, "file") else None
    if match is None:
        return [reference]
    first, last = match.groups()
    before, after = reference.target[: match.start()], reference.target[match.end() :]
    numbers = range(int(first), int(last) + 1)
    return [Reference(reference.kind, f"{before}{number:0{len(first)}}{after}") for number in numbers]


def urlsplit_or_refuse(url: str) -> Any:
    """As `urllib.parse.urlsplit`. Raises ReferenceRefused for what it cannot read."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ReferenceRefused("reference_invalid", f"The URL cannot be read: {error}.") from None


def require_allowed(
    reference: Reference, *, roots: Sequence[str], buckets: Sequence[str], policy: EgressPolicy
) -> None:
    """Refuse, by its text alone, what the operator does not let anybody read. Raises ReferenceRefused."""
    if reference.kind == "https":
        try:
            check_url(reference.target, policy)
        except EgressError as error:
            raise ReferenceRefused(error.code, error.detail, hint=error.hint or HINT) from None
    elif reference.kind == "file" and not any(_is_under(path_of(reference), root) for root in roots):
        _refuse_place(reference, "ARCHREPAIR_DATASET_ROOTS")
    elif reference.kind in CLOUDS and not any(_is_under(reference.target, bucket) for bucket in buckets):
        _refuse_place(reference, "ARCHREPAIR_DATASET_BUCKETS")


def _refuse_place(reference: Reference, setting: str) -> None:
    detail = f"{reference.target!r} is not in a place this service may read data from."
    raise ReferenceRefused(
        "reference_not_allowed", detail, hint=f"Upload the file, or have the operator add to {setting}."
    )


def path_of(reference: Reference) -> str:
    """The path a `file:` reference names."""
    return unquote(urlsplit(reference.target).path)


def _is_under(place: str, root: str) -> bool:
    return bool(root) and PurePosixPath(place).is_relative_to(PurePosixPath(root))


def references_in(spec: Mapping[str, Any]) -> dict[str, str]:
    """Field (`datasets/repair`) to reference, for every one of a spec."""
    found = {f"datasets/{split}": reference for split, reference in (spec.get("datasets") or {}).items()}
    found[MODEL_REFERENCE] = (spec.get("model") or {}).get("reference")
    return {field: reference for field, reference in found.items() if isinstance(reference, str)}
