"""What report.json says of cause and cure: blame, what was recognised, trials, cells, written files. Torch-free."""

from pydantic import Field

from archrepair_core.report.schema_measured import Count, Part


class Edge(Part):
    """One operation of a cell, from one of its states to another."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    operation: str


class Edit(Part):
    """The new architecture of one block: the edges of its cell."""

    block: str
    edges: list[Edge]


class Genotype(Part):
    """What a repair changed, as data: where, from which start, and the cells that were put in."""

    scope: list[str] = Field(description="What was trained: blocks, tensors, or `network`.")
    start: str
    align: float
    edits: list[Edit] = Field(description="Blocks whose architecture changed; empty where only weights did.")


class TrainingRun(Part):
    """One training: its loss, its steps of the optimiser and its seconds."""

    losses: list[float | None] = Field(
        description="Mean loss per epoch; of a search what the fitness lacks of its highest, per generation."
    )
    learning_rate: float
    steps: Count
    seconds: float
    diverged: bool


class SearchRecord(Part):
    """One search of a cell: the shares of its operations, and accuracy (0–1) before and after deriving."""

    select: str
    shares: list[dict[str, dict[str, float | None]]] = Field(
        description="Per snapshot of the search, edge and operation: its share of the mix."
    )
    supernet_accuracy: float | None
    derived_accuracy: float | None
    seconds: float
    training: TrainingRun


class Trial(Part):
    """One repair that was tried, and what validation said of it."""

    name: str
    genotype: Genotype
    alpha: float = Field(description="How far from the original (0) to the trained weights (1) validation went.")
    validation: dict[str, float | None]
    training: TrainingRun
    search: SearchRecord | None


class RankedBlock(Part):
    """A block or layer and how suspicious it is; larger is more, `score_sd` over bootstrap resamples."""

    name: str
    score: float | None
    score_sd: float | None
    top_share: float | None = Field(description="Of the resampled rankings, in which it came first.")


class LayerDrift(Part):
    """How far a layer's output is from what it was trained with (KL, nats), and the step from the layer before."""

    layer: str
    divergence: float | None
    jump: float | None


class Localization(Part):
    """Which block is to blame, by which method and evidence; `passes` over the network are its cost."""

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
    """A part of the network that a repair may change; shapes have no batch, `latency_share` is 0–1."""

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
    """A count of the original and of the repaired model."""

    before: Count
    after: Count


class Cell(Part):
    """What a changed block costs."""

    block: str
    params: IntBeforeAfter
    macs: IntBeforeAfter


class Candidate(Part):
    """A corruption that was compared with the field's inputs; a smaller distance is more alike."""

    kind: str
    parameter: float
    distance: float | None


class Recognition(Part):
    """Which corruption the field's inputs look like, how surely (0–1), and whether it fits at all."""

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


class Export(Part):
    """One written file: how it was made, and how far its outputs are from those of the repaired model."""

    format: str
    file: str | None
    method: str
    note: str
    batch_sizes: list[int] = Field([])
    max_abs_diff: float | None = None
    max_relative_diff: float | None = None
    tolerance: float | None = None
    unchanged: list[str] = Field([])
    changed: list[str] = Field([])
    added: list[str] = Field([])
    removed: list[str] = Field([])
