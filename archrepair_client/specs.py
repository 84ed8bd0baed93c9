"""What a job is asked for: a spec, and the files of this machine it names."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from archrepair_client.errors import BadInput
from archrepair_client.transfers import existing_file

REFERENCE = re.compile(r"(upl_|ds_)[0-9A-Z]{26}$|(upload|builtin):|(https|s3|gs|az|file)://")
MODEL_ID = re.compile(r"mdl_[0-9A-Z]{26}$")
REFERENCE_MODEL = "reference"
Source = str | Path


@dataclass(frozen=True)
class Submission:
    """A spec with its files by the name of their part; `model` is a file, or None where the spec has a `model_id`."""

    spec: dict[str, Any]
    model: Path | None
    files: Mapping[str, Path] = field(default_factory=dict)

    def all_files(self) -> dict[str, Path]:
        """Parts by name, the model first."""
        return {**({"model": self.model} if self.model is not None else {}), **self.files}


def is_reference(text: str) -> bool:
    """Whether the service finds it: an id, a URL, a builtin. Else it is a path here."""
    return REFERENCE.match(text) is not None


def submission_of(
    spec: Mapping[str, Any],
    *,
    model: Source | None = None,
    datasets: Mapping[str, Source | None] | None = None,
    relative_to: Path | None = None,
) -> Submission:
    """The spec with every path in it made a part of the request. Raises BadInput for what is not there.

    `model` is a path or `mdl_…`; each of `datasets`, and of the spec's own, a path or a reference. Paths that stand in
    the spec are relative to `relative_to`.
    """
    asked, files = dict(spec), dict[str, Path]()
    given = dict(asked.get("datasets") or {})
    resolved = {name: _local(value, relative_to) for name, value in given.items()}
    resolved |= {name: _local(value, None) for name, value in (datasets or {}).items() if value is not None}
    for name, value in resolved.items():
        if isinstance(value, Path):
            files[name], resolved[name] = existing_file(value), f"upload:{name}"
    if resolved:
        asked["datasets"] = resolved
    earlier = (asked.get("model") or {}).get(REFERENCE_MODEL)
    if isinstance(earlier, str) and isinstance(path := _local(earlier, relative_to), Path):
        files["reference_model"] = existing_file(path)
        asked["model"] = {**asked["model"], REFERENCE_MODEL: "upload:reference_model"}
    if model is None or MODEL_ID.match(str(model)):
        if model is not None:
            asked["model_id"] = str(model)
        return Submission(asked, None, files)
    return Submission(asked, existing_file(Path(model).expanduser()), files)


def _local(value: Any, relative_to: Path | None) -> Any:
    """A path for what names one; anything else as it is."""
    if isinstance(value, Path) or (isinstance(value, str) and value and not is_reference(value)):
        return (relative_to or Path()) / Path(value).expanduser()
    return value


READERS = {".json": json.loads, ".toml": tomllib.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}


def read_spec(path: Path) -> dict[str, Any]:
    """The spec in a JSON, TOML or YAML file. Raises BadInput."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise BadInput(f"the spec {path} must end in one of {', '.join(READERS)}")
    try:
        spec = read(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(f"the spec {path} cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"the spec {path} is not valid: {error}") from error
    if not isinstance(spec, dict):
        raise BadInput(f"the spec {path} must be a mapping of fields, not {type(spec).__name__}")
    return spec


def with_values(spec: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The spec with `repair.budget_seconds=60` and the like put in; values are JSON, or else text. Raises BadInput."""
    changed: dict[str, Any] = json.loads(json.dumps(spec))
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise BadInput(f"{assignment!r} is not FIELD=VALUE, e.g. repair.budget_seconds=60")
        *parents, last = path.split(".")
        place = changed
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise BadInput(f"{assignment!r}: {name} has no fields")
        place[last] = _value(text)
    return changed


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
