"""What report.json says of held-out inputs: metrics, slices, corruptions, gates, controls, examples. Torch-free."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
State = Literal["pass", "fail", "inconclusive", "not_evaluated"]


class Part(BaseModel):
    """Every object of the report. Readers have to pass over fields they do not know: minor versions add some."""

    model_config = ConfigDict(extra="ignore")


class BeforeAfter(Part):
    """A measure of the original and of the repaired model; null where it was not finite."""

    before: float | None
    after: float | None


class Rate(Part):
    """A share with its 95 % interval."""

    value: Share | None = Field(description="null where there was nothing to count.")
    ci95: Interval = Field(description="Wilson's score interval.")


class Accuracy(Part):
    """Top-1 accuracy (0–1) of the original and of the repaired model on the same inputs."""

    before: Share
    after: Share
    after_ci95: Interval
    change: float
    change_ci95: Interval = Field(description="Of the paired change (Tango's score interval).")


class ClassRow(Part):
    """One class: its accuracy before and after, and how many of its inputs were fixed and broken."""

    label: int
    n: Count
    before: Share = Field(description="Accuracy on the inputs of this class.")
    after: Share
    fixed: Count
    broken: Count
    change_ci95: Interval
    p_holm: Share = Field(description="Of the class having got worse, one-sided, adjusted over the classes.")


class Confusion(Part):
    """How often inputs of one class are taken for another."""

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
    """One class of a model that is compared with nothing."""

    label: int
    n: Count
    after: Share = Field(description="Accuracy on the inputs of this class.")
    after_ci95: Interval


class ConfusionCount(Part):
    """How often one model takes inputs of one class for another."""

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
    """Hendrycks & Dietterich 2019, with the original in the place of AlexNet; below 1 is better."""

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
    """Values of a slice that are too rare to be judged."""

    values: Count = Field(description="With fewer inputs than evaluation.min_slice, or beyond the fifty largest.")
    n: Count


class SlicedColumn(Part):
    """One column of the test data and a row per value of it."""

    column: str
    slices: list[Slice]
    not_shown: NotShown


class Gate(Part):
    """One demand on the evidence, and whether it was met."""

    expression: str
    state: State
    reason: str
    observed: float | None
    limit: float | None = Field(description="For a gate with `before`, of the change.")
    interval: Interval | None


class Bin(Part):
    """One bin of confidence."""

    n: Count
    confidence: Share
    accuracy: Share


class Reliability(Part):
    """How confidence and accuracy agree (Guo et al. 2017)."""

    before: list[Bin] | None
    after: list[Bin]


class ControlSplit(Part):
    """What a control does on one set, compared with the original."""

    n: Count
    accuracy: Accuracy
    fixed: Count
    broken: Count
    repair_rate: Rate = Field(description="Of the inputs that failed before.")
    broken_rate: Rate = Field(description="Of all inputs.")
    mcnemar_p: Share = Field(description="Exact, two-sided.")


class Against(Part):
    """The repair against a control on the same test inputs."""

    only_repair_right: Count
    only_control_right: Count
    difference: float = Field(description="Accuracy of the repair, less that of the control.")
    difference_ci95: Interval = Field(description="Of the paired difference (Tango's score interval).")
    mcnemar_p: Share = Field(description="Exact, two-sided.")


class ControlRun(Part):
    """What a plainer way made of the same data in the same seconds; never chosen, never delivered."""

    name: Literal["weights", "random_block"]
    ran: bool
    reason: str = Field(description="What it repaired, or why it was not run.")
    repaired: list[str] = Field(description="Empty where validation preferred the original.")
    allowed_seconds: float = Field(description="What the repair took.")
    seconds: float
    test: ControlSplit | None
    regression: ControlSplit | None
    repair_against_it: Against | None


class Answer(Part):
    """What a model said of one input, and how surely (0–1)."""

    predicted: int = Field(description="-1 where the model gave no answer.")
    confidence: Share


class Example(Part):
    """One test input whose answer changed."""

    row: Count = Field(description="In the test set.")
    label: int
    before: Answer
    after: Answer


class ExampleAlone(Part):
    """One test input that the model answers wrongly."""

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
