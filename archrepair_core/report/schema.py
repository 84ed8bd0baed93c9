"""What report.json holds, as types: the JSON Schema in docs/report.schema.json is made of them. Torch-free.

`python -m archrepair_core.report.schema` prints it. A field more is a new minor version, a field less or of another
meaning a new major one.
"""

import json
import sys
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from archrepair_core.report.schema_data import DataAudit
from archrepair_core.report.schema_measured import (
    ControlRun,
    Corruptions,
    Count,
    Examples,
    Gate,
    Mistakes,
    Part,
    Reliability,
    SlicedColumn,
    Split,
    SplitAlone,
    State,
)
from archrepair_core.report.schema_repair import Block, Cell, Export, Localization, Recognition, Trial

SCHEMA_VERSION = "1.3"
Completion = Literal["full", "partial"]


class Cost(Part):
    """What the repaired model costs to run."""

    latency_ratio: float | None = Field(description="After divided by before.")
    params_ratio: float


class Ingest(Part):
    """The uploaded file, and the proof that its editable twin computes the same."""

    format: str
    written_by: str
    output: str
    batch_sizes: list[int]
    max_abs_diff: float
    num_state_entries: Count
    num_trainable: Count
    untrained: list[str]


class Environment(Part):
    """Where the repair ran, so that it can be run again."""

    archrepair: str
    torch: str
    python: str
    machine: str
    device: str
    threads: int


class Ratios(Part):
    """After divided by before; empty for one model alone."""

    latency_ratio: float | None = None
    params_ratio: float | None = None


class ModelSize(Part):
    """Of one model: its parameters, and the seconds of one batch."""

    num_params: Count
    latency_seconds: float = Field(description="Of one batch, median.")


class Sizes(Part):
    """Of the original and of the repaired model, timed on the same batch."""

    before: ModelSize | None
    after: ModelSize
    batch: Count


class Measured(Part):
    """What every report says. Every other view of it (html, Markdown, JUnit) is made of this."""

    object: Literal["report"]
    schema_version: Literal["1.3"]
    verdict: State
    reason: str
    gates: list[Gate]
    corruptions: Corruptions | None = None
    slices: list[SlicedColumn] = Field([])
    reliability: dict[str, Reliability]
    seconds: dict[str, float]
    blocks: list[Block]
    data: DataAudit
    ingest: Ingest
    spec: dict[str, Any] = Field(description="The spec of the job with every `auto` replaced by what it became.")
    environment: Environment
    limits: list[str]


class Report(Measured):
    """The evidence of one repair."""

    outcome: Literal["repaired", "no_improvement"]
    completion: Completion = Field(description="partial: the search was stopped on request, before its time was up.")
    chosen: Trial | None
    test: Split
    regression: Split | None = None
    examples: Examples
    controls: list[ControlRun] = Field([])
    cost: Cost
    cells: list[Cell]
    localization: Localization
    trials: list[Trial]
    recognition: Recognition | None
    exports: list[Export]


class EvaluationReport(Measured):
    """What one model does, alone or compared with another one, which is `before`."""

    outcome: Literal["evaluated"]
    test: Split | SplitAlone
    regression: Split | SplitAlone | None = None
    examples: Examples | Mistakes
    cost: Ratios
    size: Sizes


AnyReport: TypeAdapter[Report | EvaluationReport] = TypeAdapter(
    Annotated[Report | EvaluationReport, Field(discriminator="outcome")]
)


def json_schema() -> dict[str, Any]:
    """The published schema."""
    made = AnyReport.json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:archrepair:report:{SCHEMA_VERSION}",
        **made,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n")
