"""What report.json says of cause and cure: blame, what was recognised, trials, cells, written files. Torch-free."""

from pydantic import Field

from archrepair_core.report.schema_measured import Count, Part


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
    losses: list[float | None] = Field(
        description="Mean loss per epoch; of a search what the fitness lacks of its highest, per generation."
    )
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


class Export(Part):
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
