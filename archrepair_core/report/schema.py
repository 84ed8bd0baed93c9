"""What report.json holds, as types: the JSON Schema in docs/report.schema.json is made of them. Torch-free.

`python -m archrepair_core.report.schema` prints it. A field more is a new minor version, a field less or of another
meaning a new major one.
"""

import json
import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

SCHEMA_VERSION = "1.2"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
State = Literal["pass", "fail", "inconclusive", "not_evaluated"]
Completion = Literal["full", "partial"]


class Part(BaseModel):
    """Every object of the report. Readers have to pass over fields they do not know: minor versions add some."""

    model_config = ConfigDict(extra="ignore")


class BeforeAfter(Part):
    before: float | None
    after: float | None


class Rate(Part):
    value: Share | None = Field(description="null where there was nothing to count.")
    ci95: Interval = Field(description="Wilson's score interval.")


class Accuracy(Part):
    before: Share
    after: Share
    after_ci95: Interval
    change: float
    change_ci95: Interval = Field(description="Of the paired change (Tango's score interval).")


class ClassRow(Part):
    label: int
    n: Count
    before: Share = Field(description="Accuracy on the inputs of this class.")
    after: Share
    fixed: Count
    broken: Count
    change_ci95: Interval
    p_holm: Share = Field(description="Of the class having got worse, one-sided, adjusted over the classes.")


class Confusion(Part):
    label: int
    predicted: int
    before: Count
    after: Count


class Split(Part):
    """What the repair did on one set of inputs that nothing was chosen on."""

    n: Count
    accuracy: Accuracy
    fixed: Count
    broken: Count
    still_wrong: Count
    still_right: Count
    repair_rate: Rate = Field(description="Of the inputs that failed before.")
    broken_rate: Rate = Field(description="Of all inputs.")
    mcnemar_p: Share = Field(description="Exact, two-sided.")
    per_class: list[ClassRow]
    worst_class: ClassRow | None
    nll: BeforeAfter
    ece: BeforeAfter = Field(description="Expected calibration error over 15 bins of confidence.")
    confusion_change: list[Confusion] = Field(description="The ten that changed most.")


class AccuracyAlone(Part):
    """Of one model, which there is nothing to compare with."""

    before: None
    after: Share
    after_ci95: Interval
    change: None
    change_ci95: None


class ClassAlone(Part):
    label: int
    n: Count
    after: Share = Field(description="Accuracy on the inputs of this class.")
    after_ci95: Interval


class ConfusionCount(Part):
    label: int
    predicted: int
    count: Count


class SplitAlone(Part):
    """How one model answers one set of inputs."""

    n: Count
    accuracy: AccuracyAlone
    right: Count
    wrong: Count
    per_class: list[ClassAlone]
    nll: BeforeAfter
    ece: BeforeAfter = Field(description="Expected calibration error over 15 bins of confidence.")
    confusions: list[ConfusionCount] = Field(description="The ten most frequent.")


class MeanCorruptionError(Part):
    value: float | None = Field(description="Errors after, divided by errors before, averaged over the corruptions.")
    ci95: Interval | None


class CorruptionRow(Part):
    """One corruption at severities 1 to 5."""

    kind: str
    unit: str
    parameters: list[float]
    before: list[Share] | None = Field(description="Accuracy per severity.")
    after: list[Share]
    mean: Accuracy | AccuracyAlone
    error_ratio: float | None = Field(description="Errors after, divided by errors before.")


class Corruptions(Part):
    """What is left of the accuracy when test inputs go through common corruptions. Intervals are over inputs."""

    n: Count = Field(description="Test inputs, each corrupted in every way.")
    seed: int
    severities: list[int]
    clean: BeforeAfter = Field(description="Accuracy on the same inputs as they are.")
    accuracy: Accuracy | AccuracyAlone = Field(description="Mean over all corruptions and severities.")
    worse_p: Share | None = Field(description="Of the mean accuracy having got worse, one-sided.")
    mce: MeanCorruptionError
    kinds: list[CorruptionRow]
    seconds: float


class Slice(Part):
    """The test inputs with one value in a column of their metadata. Changes are null for one model alone."""

    value: str | None = Field(description="null for inputs without a value.")
    n: Count
    before: Share | None
    after: Share
    after_ci95: Interval
    from_whole: float = Field(description="Accuracy after, less that of all test inputs.")
    p_below_rest: Share = Field(description="Of being answered worse than the rest, adjusted over all slices.")
    change: float | None
    change_ci95: Interval | None
    fixed: Count | None
    broken: Count | None
    broken_ci95: Interval | None
    p_worse: Share | None = Field(description="Of having got worse, one-sided, adjusted over all slices.")


class NotShown(Part):
    values: Count = Field(description="With fewer inputs than evaluation.min_slice, or beyond the fifty largest.")
    n: Count


class SlicedColumn(Part):
    column: str
    slices: list[Slice]
    not_shown: NotShown


class Gate(Part):
    expression: str
    state: State
    reason: str
    observed: float | None
    limit: float | None = Field(description="For a gate with `before`, of the change.")
    interval: Interval | None


class Edge(Part):
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    operation: str


class Edit(Part):
    block: str
    edges: list[Edge]


class Genotype(Part):
    scope: list[str] = Field(description="What was trained: blocks, tensors, or `network`.")
    start: str
    align: float
    edits: list[Edit] = Field(description="Blocks whose architecture changed; empty where only weights did.")


class TrainingRun(Part):
    losses: list[float | None] = Field(description="Mean loss per epoch.")
    learning_rate: float
    steps: Count
    seconds: float
    diverged: bool


class SearchRecord(Part):
    select: str
    shares: list[dict[str, dict[str, float | None]]] = Field(
        description="Per snapshot of the search, edge and operation: its share of the mix."
    )
    supernet_accuracy: float | None
    derived_accuracy: float | None
    seconds: float
    training: TrainingRun


class Trial(Part):
    name: str
    genotype: Genotype
    alpha: float = Field(description="How far from the original (0) to the trained weights (1) validation went.")
    validation: dict[str, float | None]
    training: TrainingRun
    search: SearchRecord | None


class RankedBlock(Part):
    name: str
    score: float | None
    score_sd: float | None
    top_share: float | None = Field(description="Of the resampled rankings, in which it came first.")


class LayerDrift(Part):
    layer: str
    divergence: float | None
    jump: float | None


class Localization(Part):
    method: str
    formula: str
    blocks: list[RankedBlock]
    layers: list[RankedBlock]
    stability: float | None
    n_passing: Count
    n_failing: Count
    kind: str
    evidence: dict[str, float | str | None]
    drift: list[LayerDrift]
    methods: dict[str, dict[str, float | None]]
    passes: Count


class Block(Part):
    name: str
    kind: str
    input_shape: list[int]
    output_shape: list[int]
    num_params: Count
    macs: Count
    latency_share: float | None
    depth: int
    level: str
    arguments: list[str]
    borrowed: list[str]


class IntBeforeAfter(Part):
    before: Count
    after: Count


class Cell(Part):
    """What a changed block costs."""

    block: str
    params: IntBeforeAfter
    macs: IntBeforeAfter


class SkippedImage(Part):
    """An image that could not be decoded."""

    row: Count = Field(description="In the source.")
    name: str
    reason: str


class Duplicates(Part):
    """Images of `first` that stand a second time in `second`, or, where that is null, in `first` itself."""

    first: str
    second: str | None
    exact: Count
    near: Count = Field(description="Alike but for what a re-encoding changes, among those compared.")
    compared: Count = Field(description="Images of `first` that were looked at for near ones; none below 16 pixels.")
    examples: list[tuple[Count, Count]] = Field(description="Rows of near pairs in the two sources.")


class DataWarning(Part):
    code: str
    detail: str
    hint: str


class DataSet(Part):
    n: Count
    digest: str = Field(description="Of pixels and labels, whatever file they came in.")
    source: str
    labelled: bool
    classes: dict[str, Count]
    skipped: list[SkippedImage] = []


class DataAudit(Part):
    splits: dict[str, DataSet]
    notes: list[str]
    duplicates: list[Duplicates] = []
    warnings: list[DataWarning] = []


class Candidate(Part):
    kind: str
    parameter: float
    distance: float | None


class Recognition(Part):
    kind: str
    parameter: float
    unit: str | None
    fits: bool
    sureness: float
    distance: float | None
    identity_distance: float | None
    divergences: dict[str, float | None]
    num_field: Count
    ranking: list[Candidate]
    summary: str


class Bin(Part):
    n: Count
    confidence: Share
    accuracy: Share


class Reliability(Part):
    before: list[Bin] | None
    after: list[Bin]


class Answer(Part):
    predicted: int = Field(description="-1 where the model gave no answer.")
    confidence: Share


class Example(Part):
    row: Count = Field(description="In the test set.")
    label: int
    before: Answer
    after: Answer


class ExampleAlone(Part):
    row: Count = Field(description="In the test set.")
    label: int
    after: Answer


class Mistakes(Part):
    """Test inputs that one model answers wrong, the most confident errors first."""

    wrong: list[ExampleAlone]


class Examples(Part):
    """Test inputs to look at, the most confident errors first."""

    broken: list[Example]
    fixed: list[Example]
    still_wrong: list[Example]


class Cost(Part):
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


class Export(Part):
    format: str
    file: str | None
    method: str
    note: str
    batch_sizes: list[int] = []
    max_abs_diff: float | None = None
    max_relative_diff: float | None = None
    tolerance: float | None = None
    unchanged: list[str] = []
    changed: list[str] = []
    added: list[str] = []
    removed: list[str] = []


class Environment(Part):
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
    num_params: Count
    latency_seconds: float = Field(description="Of one batch, median.")


class Sizes(Part):
    before: ModelSize | None
    after: ModelSize
    batch: Count


class Measured(Part):
    """What every report says. Every other view of it (html, Markdown, JUnit) is made of this."""

    object: Literal["report"]
    schema_version: Literal["1.2"]
    verdict: State
    reason: str
    gates: list[Gate]
    corruptions: Corruptions | None = None
    slices: list[SlicedColumn] = []
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
