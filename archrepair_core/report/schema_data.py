"""What report.json says of the data. Torch-free."""

from pydantic import Field

from archrepair_core.report.schema_measured import Count, Part


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
    """Something about the data that makes the result doubtful, and what to do about it."""

    code: str
    detail: str
    hint: str


class DataSet(Part):
    """What was read for one role."""

    n: Count
    digest: str = Field(description="Of pixels and labels, whatever file they came in.")
    source: str
    labelled: bool
    classes: dict[str, Count]
    skipped: list[SkippedImage] = Field([])


class DataAudit(Part):
    """What was read, and what is odd about it."""

    splits: dict[str, DataSet]
    notes: list[str]
    duplicates: list[Duplicates] = Field([])
    warnings: list[DataWarning] = Field([])
