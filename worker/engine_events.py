"""The events of an engine process, checked where they enter the worker: the engine ran a stranger's model.

Names of artifacts become file paths and storage keys, so they are plain file names and nothing else.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

CODE = r"^[a-z_]+\.[a-z0-9_]+$"
Count = Annotated[int, Field(ge=0, lt=2**53)]
Name = Annotated[str, Field(max_length=1000)]
Shape = Annotated[list[Count], Field(max_length=16)]
Phase = Literal["ingesting", "baseline", "localizing", "repairing", "verifying", "packaging"]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class Ready(_Event):
    type: Literal["ready"]


class Progress(_Event):
    type: Literal["progress"]
    phase: Phase
    percent: float = Field(ge=0, le=100)
    message: str = Field(max_length=2000)
    step: int = 0
    total_steps: int = 0
    loss: float | None = Field(None, allow_inf_nan=False)


class ResolvedSpec(_Event):
    type: Literal["resolved_spec"]
    spec: dict[str, Any]


class Block(_Event):
    name: Name
    kind: Name
    level: str = Field(pattern=r"^[a-z_]{1,40}$")
    stage: Name | None
    input_shape: Shape
    output_shape: Shape
    num_params: Count
    macs: Count
    latency_share: float = Field(ge=0)
    depth: Count


class Reason(_Event):
    code: str = Field(pattern=CODE)
    detail: str = Field(max_length=20_000)
    hint: str = Field("", max_length=20_000)


class ModelFound(_Event):
    """The model is readable, rebuilt and proven; `blocks_unknown` says why `blocks` is empty."""

    type: Literal["model"]
    format: str = Field(pattern=r"^[a-z0-9_]{1,40}$")
    written_by: str | None = Field(None, max_length=200)
    num_parameters: Count
    input_shape: Shape | None
    input_shape_source: Literal["given", "file", "guessed", "data"] | None
    blocks: list[Block] = Field(max_length=20_000)
    blocks_unknown: Reason | None = None


class RankedBlock(_Event):
    name: Name
    score: float | None = Field(allow_inf_nan=False)


class Localized(_Event):
    """Which blocks are to blame, most suspicious first, and what kind of fault it looks like."""

    type: Literal["localization"]
    method: Name
    fault: Name
    blocks: list[RankedBlock] = Field(max_length=64)


class Skipped(_Event):
    row: Count
    name: Name
    reason: Name


class Duplicates(_Event):
    exact: Count
    near: Count
    compared: Count


class DatasetFacts(_Event):
    format: str = Field(pattern=r"^[a-z0-9_]{1,40}$")
    num_samples: Count
    image_shape: Shape
    pixel_type: str = Field(pattern=r"^[a-z0-9]{1,40}$")
    labelled: bool
    num_classes: Count | None
    classes: dict[Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")], Count] | None = Field(
        max_length=10_000
    )
    content_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_skipped: Count
    skipped: list[Skipped] = Field(max_length=20)
    duplicates: Duplicates


class DatasetFound(_Event):
    """The data is readable, all of it."""

    type: Literal["dataset"]
    facts: DatasetFacts


class NamedArtifact(_Event):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    kind: str = Field(pattern=r"^[a-z_]{1,40}$")


class Result(_Event):
    type: Literal["result"]
    result: dict[str, Any]
    verdict: Literal["pass", "fail", "inconclusive", "not_evaluated"]
    artifacts: list[NamedArtifact] = Field(max_length=1000)


class EngineProblem(_Event):
    type: Literal["error"]
    code: str = Field(pattern=CODE)
    detail: str = Field(max_length=20_000)
    hint: str = Field("", max_length=20_000)
    category: Literal["user", "platform"] = "platform"
    phase: Phase = "ingesting"


Event = Ready | Progress | ModelFound | Localized | DatasetFound | ResolvedSpec | Result | EngineProblem
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def parse_event(line: bytes) -> Event:
    """One line of the engine's event pipe. Raises pydantic.ValidationError, a ValueError."""
    return _EVENT.validate_json(line)
