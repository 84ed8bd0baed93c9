"""The form of a new job, read off the JSON Schema of its spec: what the API takes, the form offers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from app.schemas.requests import JobCreate

# The order of the sections, and of what stands outside of them; `datasets` and the model are on top, beside the files.
SECTIONS = ("repair", "localization", "evaluation", "preprocessing", "model")
ALONE = ("hardware", "seed", "timeout_seconds", "keep_days")
LISTS = ("gates",)


@dataclass(frozen=True)
class Field:
    """One input. `path` is where its value stands in the spec; `kind` is choice, number, switch, text or lines."""

    path: str
    kind: str
    label: str
    description: str
    default: Any
    choices: Sequence[str] = ()

    @property
    def placeholder(self) -> str:
        """What happens when it is left empty."""
        return "" if self.default is None else str(self.default)


@dataclass(frozen=True)
class Section:
    name: str
    description: str
    fields: Sequence[Field]


@cache
def form_of_spec() -> Sequence[Section]:
    """The sections of the form, in order."""
    schema = JobCreate.model_json_schema()
    found = _fields(schema, schema, path="")
    by_section: dict[str, list[Field]] = {}
    for field in found:
        head = field.path.partition(".")[0]
        by_section.setdefault(head, []).append(field)
    properties = schema["properties"]
    common = [field for name in ("gates", *ALONE) for field in by_section.get(name, [])]
    sections = [Section("kind", "", by_section["kind"]), Section("datasets", "", by_section["datasets"])]
    sections.append(Section("verdict and limits", "", common))
    sections += [
        Section(name, _resolved(schema, properties[name]).get("description", ""), by_section[name]) for name in SECTIONS
    ]
    return tuple(sections)


def _fields(root: Mapping[str, Any], schema: Mapping[str, Any], *, path: str) -> Iterator[Field]:
    for name, given in schema.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        found = _resolved(root, given)
        if found.get("properties"):
            yield from _fields(root, found, path=where)
        elif (field := _field(where, name, found)) is not None:
            yield field


def _field(path: str, name: str, schema: Mapping[str, Any]) -> Field | None:
    """The input for a schema of one value; None for what only JSON can say."""
    branches = [branch for branch in schema.get("anyOf", [schema]) if branch.get("type") != "null"]
    choices = [str(word) for branch in branches for word in branch.get("enum", [branch.get("const")]) if word]
    is_number = any(branch.get("type") in ("number", "integer") for branch in branches)
    label, description = name.replace("_", " "), schema.get("description", "")
    default = schema.get("default")
    if path in LISTS:
        return Field(path, "lines", label, description or "One a line; empty for the usual ones.", default)
    if schema.get("type") == "boolean":
        return Field(path, "switch", label, description, default)
    if is_number:
        return Field(path, "number", label, description, default)
    if choices:
        return Field(path, "choice", label, description, default, choices)
    if any(branch.get("type") == "string" for branch in branches):
        label = f"{label} data" if path.startswith("datasets.") else label
        return Field(path, "text", label, description, default)
    return None


def _resolved(root: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with what it refers to; its own description and default before those of that."""
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return {**found, **{name: value for name, value in schema.items() if name != "$ref"}}
