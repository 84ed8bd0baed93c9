"""What comes in over HTTP: no field that does not exist, and no value that only looks like the one meant."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from app.keys import SCOPES
from app.limits import MAX_DIMENSIONS, MAX_INPUT_SIDE
from app.shared.references import REGISTER_PATTERN
from app.shared.webhooks import ENDINGS, EVENTS, JOB_EVENTS, EventName, JobEventName
from archrepair_core.gates import parse_gate
from archrepair_core.spec import GateExpression, RepairSpec

Label = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


def _without_brackets(key: str) -> str:
    if "[" in key or "]" in key:
        raise ValueError("must hold no square bracket: GET /jobs asks for metadata[KEY]=VALUE")
    return key


METADATA_KEYS: JsonDict = {"minLength": 1, "maxLength": 64, "pattern": r"^[^\[\]]*$"}
_MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_without_brackets)]
_MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[
    dict[_MetadataKey, _MetadataValue],
    Field(max_length=16, json_schema_extra={"propertyNames": METADATA_KEYS}),
]
RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _parsed_time(value: Any) -> Any:
    # By itself pydantic also takes numbers, as epoch seconds or days or milliseconds, whatever it guesses.
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise ValueError("is not a time like 2026-11-22T10:02:11Z")
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value.upper()))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


AskedTime = Annotated[AwareDatetime, BeforeValidator(_parsed_time)]
# To JSON Schema 3.0 is an integer, to a strict pydantic it is none.
AskedInteger = Annotated[int, BeforeValidator(_whole)]


class Asked(BaseModel):
    """What comes in: no field that does not exist, and no value that only looks like the one that is meant."""

    model_config = ConfigDict(extra="forbid", strict=True)


WebhookUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^https?://")]


class JobWebhook(BaseModel):
    """A webhook for one job alone."""

    model_config = ConfigDict(extra="forbid")
    url: WebhookUrl
    events: list[JobEventName] = Field(
        list(ENDINGS), min_length=1, max_length=len(JOB_EVENTS), description="What to hear of; by default its end."
    )


class JobCreate(RepairSpec):
    """A repair, and what belongs to the job around it."""

    model_id: str | None = Field(None, max_length=40, description="A registered model, in place of a `model` part.")
    metadata: Metadata = Field({}, description="Yours to find the job by: `GET /jobs?metadata[KEY]=VALUE`.")
    hardware: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="What it must run on; auto takes a GPU where a worker has one, and waits for none."
    )
    timeout_seconds: float | None = Field(
        None, gt=0, le=30 * 24 * 3600, description="The job fails when it is not done by then, waiting included."
    )

    keep_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="Deleted so many days after its end, or earlier where the service keeps jobs for less; see "
        "`expires_at`.",
    )
    cache: Literal["prefer"] | None = Field(
        None,
        description="prefer: when the same was run before (model, data, spec, seed, hardware and version) and has "
        "succeeded, the answer is that job, with 200, and nothing is run.",
    )
    webhook: JobWebhook | None = None

    def keep_seconds(self) -> float | None:
        """`keep_days`, in seconds."""
        return None if self.keep_days is None else self.keep_days * 24 * 3600

    def repair_spec(self) -> dict[str, Any]:
        """The part the engine understands, as JSON data."""
        return self.model_dump(mode="json", exclude=set(JobCreate.model_fields) - set(RepairSpec.model_fields))


class CancelRequest(Asked):
    keep_best: bool = Field(
        False,
        description="A repair that is searching ends its search, measures the best it has and hands it over: the "
        "job is cancelled, with result, verdict and files. Where there is nothing yet, as without it.",
    )


def _parsed(gate: str) -> str:
    parse_gate(gate)
    return gate


class VerdictRequest(Asked):
    """Gates to put to what a job has measured, in the words of a spec's `gates`."""

    gates: list[Annotated[GateExpression, AfterValidator(_parsed)]] = Field(
        max_length=64, description="`METRIC OP LIMIT`, e.g. `test.broken_rate <= 0.01`."
    )


def _in_order(scopes: list[str]) -> list[str]:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise ValueError(f"there is no scope {', '.join(map(repr, unknown))}; there are {', '.join(SCOPES)}")
    return [scope for scope in SCOPES if scope in scopes]


def _in_the_future(when: datetime) -> datetime:
    if when <= datetime.now(UTC):
        raise ValueError("lies in the past")
    return when


class ApiKeyCreate(Asked):
    name: Label = Field(description="For people: who uses it, where.")
    scopes: Annotated[list[str], AfterValidator(_in_order)] = Field(
        min_length=1,
        max_length=len(SCOPES),
        json_schema_extra={"items": {"type": "string", "enum": list(SCOPES)}},
        description="What it may do; only what the key that asks may do itself.",
    )
    expires_at: Annotated[AskedTime, AfterValidator(_in_the_future)] | None = Field(
        None, description="From then on it is refused. Without it, never."
    )


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MAX_PARTS = 1000


class UploadCreate(Asked):
    """A large file that will come in parts."""

    filename: str = Field(min_length=1, max_length=255)
    size_bytes: AskedInteger = Field(ge=1, lt=2**53)
    sha256: Sha256 | None = Field(None, description="Of the whole file: completing it checks this.")
    part_bytes: AskedInteger | None = Field(
        None, ge=1, lt=2**53, description="Of every part but the last; without it, the largest allowed."
    )
    presigned: bool = Field(False, description="Also give URLs by which the parts go to the S3 store directly.")


class SentPart(Asked):
    number: AskedInteger = Field(ge=1, le=MAX_PARTS)
    sha256: Sha256


class UploadComplete(Asked):
    """`parts` names those that went to signed URLs; the others are known already."""

    parts: list[SentPart] = Field([], max_length=MAX_PARTS)


_Size = Annotated[int, Field(ge=1, le=MAX_INPUT_SIDE, strict=True), BeforeValidator(_whole)]
GivenShape = Annotated[list[_Size], Field(min_length=1, max_length=MAX_DIMENSIONS)]


class ModelCreate(Asked):
    """A model that was uploaded in parts."""

    upload_id: str = Field(max_length=40, description="A completed upload.")
    input_shape: GivenShape | None = Field(
        None, description="Of one input, e.g. [3, 224, 224]; without it, it is worked out."
    )


class DatasetFields(Asked):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = (
        Field(None, description="For people; without it, the name of the file.")
    )
    metadata: Metadata = Field({}, description="Yours to find it by.")


class DatasetCreate(DatasetFields):
    """Data that lies somewhere: `https://…`, `s3://…`, `gs://…`, `az://…`, `file:///…`, `upl_…`, `builtin:digits`."""

    reference: str = Field(
        min_length=1,
        max_length=1900,
        json_schema_extra={"pattern": REGISTER_PATTERN},
        description="Where it is; `#sha256=HEX` may follow a URL.",
    )
    sha256: Sha256 | None = Field(None, description="Of the file; https:// needs it, here or after the URL.")


class WebhookEndpointCreate(Asked):
    url: WebhookUrl
    events: list[EventName] = Field(list(EVENTS), min_length=1, max_length=len(EVENTS))
    description: str = Field("", max_length=200)


class WebhookEndpointUpdate(Asked):
    """What is not given stays as it is."""

    url: WebhookUrl | None = None
    events: list[EventName] | None = Field(None, min_length=1, max_length=len(EVENTS))
    description: str | None = Field(None, max_length=200)
    enabled: bool | None = None
