"""What a repair *is*: the spec a customer sends. Torch-free pydantic, one definition for engine, gateway and client.

Every knob accepts `"auto"`; the engine reports what it became as `resolved_spec`. Unknown fields are errors.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from archrepair_core.gates import GATE_PATTERN, MAX_GATE_CHARACTERS, parse_gate

PHASES = ("ingesting", "baseline", "localizing", "repairing", "verifying", "packaging")
SPLITS = ("repair", "validation", "test", "replay", "regression")
# The data that a job of each kind cannot do without, and what for.
REQUIRED_DATA: Mapping[str, tuple[str, str]] = {
    "repair": ("repair", "inputs the model fails on, which a repair learns from"),
    "localize": ("repair", "inputs the model fails on, which the blame is read off"),
    "evaluate": ("test", "labelled inputs to measure the model on"),
}

RepairMethod = Literal[
    "auto", "bn", "align", "weights", "block_search", "archrepair", "arachne", "apricot", "mode", "sensei",
    "fewshot_mix", "deeprepair", "certify",
]  # fmt: skip
RepairLevel = Literal["auto", "neuron", "layer", "block", "network"]
# Which levels a method can be kept on; `auto` is the method's own.
_BLOCK_OR_NETWORK: tuple[RepairLevel, ...] = ("auto", "block", "network")
LEVELS: Mapping[RepairMethod, tuple[RepairLevel, ...]] = {
    **dict.fromkeys(get_args(RepairMethod), _BLOCK_OR_NETWORK),
    "weights": get_args(RepairLevel),
    "archrepair": ("auto", "layer", "block", "network"),
    "arachne": ("auto", "neuron"),
    "certify": ("auto", "layer"),
    **dict.fromkeys(("apricot", "mode", "sensei", "fewshot_mix", "deeprepair"), ("auto", "network")),
}
Auto = Literal["auto"]
OutputFormat = Literal["torchscript", "torch_export", "onnx", "safetensors"]
# How files of a format end; the format of a written file is read off its name.
FILE_SUFFIXES: Mapping[OutputFormat, str] = {
    "torchscript": ".pt",
    "torch_export": ".pt2",
    "onnx": ".onnx",
    "safetensors": ".safetensors",
}
OutputFormats = Annotated[
    list[OutputFormat], Field(min_length=1, max_length=len(FILE_SUFFIXES), json_schema_extra={"uniqueItems": True})
]
# Said in the schema, checked by parse_gate, which says what is wrong.
GateExpression = Annotated[str, Field(json_schema_extra={"pattern": GATE_PATTERN, "maxLength": MAX_GATE_CHARACTERS})]
DatasetReference = Annotated[str, Field(min_length=1, max_length=2048)]
CommonCorruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip
COMMON_CORRUPTIONS: tuple[CommonCorruption, ...] = get_args(CommonCorruption)
Control = Literal["weights", "random_block"]
CorruptionNames = Annotated[
    list[CommonCorruption],
    Field(min_length=1, max_length=len(COMMON_CORRUPTIONS), json_schema_extra={"uniqueItems": True}),
]


class Strict(BaseModel):
    """A part of the spec: unknown fields are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetReferences(Strict):
    """Where each split is. `upload:NAME` is the part NAME of the same request; `builtin:digits` needs no file."""

    repair: DatasetReference | None = Field(
        None,
        description="Inputs of the fault, failing and passing ones; without labels for bn, align and auto. Required "
        "but for an evaluation, which reads test and regression only.",
    )
    validation: DatasetReference | None = Field(None, description="Choices are made on it; cut from repair if absent.")
    test: DatasetReference | None = Field(
        None, description="Only the verdict; a hold-out cut from `repair` if absent. An evaluation requires it."
    )
    replay: DatasetReference | None = Field(None, description="Training data given back, mixed into the repair.")
    regression: DatasetReference | None = Field(None, description="What works today and must keep working.")
    allow_leak: bool = Field(False, description="Accept samples that stand in both repair and test.")
    allow_mismatch: bool = Field(
        False, description="Go on where other preprocessing or another order of classes would clearly raise accuracy."
    )


class Preprocessing(Strict):
    """How an image becomes the model's input. `mean` and `std` apply after scaling, one number per channel."""

    mean: list[float] | None = Field(None, max_length=64)
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, max_length=64)
    resize: Annotated[list[Annotated[int, Field(gt=0, le=4096)]], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[height, width] in pixels."
    )
    color: Literal["auto", "rgb", "bgr", "grey"] = Field(
        "auto", description="What the model takes; images are read as RGB or grey. bgr is what OpenCV reads."
    )
    scale: Literal["auto", "0-1", "0-255"] = Field(
        "auto", description="Range of the pixels before mean and std; auto is 0-1 for bytes, unchanged for floats."
    )

    @model_validator(mode="after")
    def _mean_and_std_belong_together(self) -> "Preprocessing":
        if (self.mean is None) != (self.std is None) or (self.mean and self.std and len(self.mean) != len(self.std)):
            raise ValueError("mean and std must be given together, one number per channel each")
        return self


class Model(Strict):
    """How the model's answer is read, and what it once was."""

    output: str = Field(
        "auto",
        min_length=1,
        max_length=200,
        description="Which output holds the logits: a field or key (`logits`), a position (`0`), a path (`0.logits`). "
        "`auto` is the only floating output of shape [N, classes].",
    )
    class_names: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(
        None,
        min_length=1,
        max_length=20_000,
        description="Names of the outputs in their order, for data whose labels are words: folders or strings.",
    )
    reference: str | None = Field(
        None,
        min_length=1,
        max_length=2048,
        description="An earlier good version of the model, `upload:NAME`: where a block has changed, it is to blame. "
        "In an evaluation any model of the same classes: what is measured is compared with it.",
    )


class Adversarial(Strict):
    """The attack that gives every input a twin on the other side: passing inputs fail, failing ones pass."""

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = Field(4 / 255, gt=0, le=10, description="Radius, in pixels scaled to 0-1.")
    steps: int = Field(5, ge=0, le=100, description="PGD steps; 0 leaves the twins out.")


class Localization(Strict):
    """Which block to blame. `auto` lets scores order the blocks and measured probe repairs decide."""

    method: Literal["auto", "drift", "spectrum", "gradient", "spectrum+gradient", "probe", "random"] = "auto"
    formula: Literal["tarantula", "ochiai", "dstar2", "dstar3", "barinel", "op2"] = "ochiai"
    top_k: int = Field(3, ge=1, le=64, description="How many of the ranked blocks are tried.")
    include: list[str] = Field([], max_length=64, description="Glob patterns of block names; empty means all.")
    exclude: list[str] = Field([], max_length=64)
    adversarial: Adversarial = Adversarial()


def _levels_by_method(schema: dict[str, Any]) -> None:
    """Say in the schema what `_level_is_one_of_the_method` checks."""
    groups: dict[tuple[RepairLevel, ...], list[RepairMethod]] = {}
    for method, levels in LEVELS.items():
        groups.setdefault(levels, []).append(method)
    schema["anyOf"] = [
        {
            "properties": {"method": {"enum": methods}, "level": {"enum": list(levels)}},
            "required": [] if "auto" in methods else ["method"],
        }
        for levels, methods in groups.items()
    ]


class Repair(Strict):
    """How to repair: `auto` climbs the ladder batch-norm → block search → level above, and never returns worse."""

    model_config = ConfigDict(json_schema_extra=_levels_by_method)
    method: RepairMethod = Field(
        "auto",
        description="auto, bn, align and block_search are the service's own; the others are the literature's, by the "
        "names of their papers.",
    )
    level: RepairLevel = Field(
        "auto", description="How much of the network is trained, or searched; neuron and layer where the method allows."
    )
    augment: Literal["auto", "none", "flip", "crop", "flip_crop", "trivial", "augmix", "match"] = Field(
        "auto",
        description="auto keeps only the moves under which the original model does not get worse, and replays known "
        "data through the corruption it recognises in the repair inputs (match).",
    )
    budget_seconds: Auto | Annotated[float, Field(gt=0, le=7 * 24 * 3600)] = "auto"
    epochs: Auto | Annotated[int, Field(ge=1, le=1000)] = "auto"
    distillation: Auto | Annotated[float, Field(ge=0, le=100)] = Field(
        "auto", description="Weight of staying with the original's answers where it was right; 0 is off."
    )
    restoration: Auto | Annotated[float, Field(ge=0, le=100)] = Field(
        "auto",
        description="Weight of giving the last layer, for known images replayed through the recognised corruption, "
        "what the original gives it for the untouched ones; 0 is off.",
    )
    align: Auto | Annotated[float, Field(ge=0, le=100)] = Field(
        "auto", description="Weight of matching the healthy statistics while training; auto asks validation, 0 is off."
    )
    interpolate: bool = Field(True, description="Walk back towards the original where validation likes that better.")
    select: Literal["argmax", "perturbation"] = Field(
        "argmax", description="How `archrepair` derives the block: largest alpha, or least lost by removing."
    )
    cache_gb: float = Field(4.0, ge=0, le=1024, description="Disk for features at the cut; 0 computes them each time.")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_latency_ratio: float = Field(1.10, ge=1, le=10)
    max_params_ratio: float = Field(1.25, ge=1, le=10)
    max_macs_ratio: float = Field(1.25, ge=1, le=10)

    @field_validator("level")
    @classmethod
    def _level_is_one_of_the_method(cls, level: RepairLevel, info: ValidationInfo) -> RepairLevel:
        method = info.data.get("method")  # missing where it is wrong, which is said already
        if method is not None and level not in LEVELS[method]:
            able = ", ".join(name for name in LEVELS if level in LEVELS[name])
            raise ValueError(f"{method} works on {', '.join(LEVELS[method])}; {level} is for {able}")
        return level


class Evaluation(Strict):
    """What is measured beyond the test set as a whole, before and after."""

    corruptions: Literal["auto", "none", "common-15x5"] | CorruptionNames = Field(
        "auto",
        description="Accuracy on test inputs that went through common corruptions at severities 1 to 5, and the mean "
        "corruption error: `common-15x5` is all fifteen, a list some of them. It costs five runs over the inputs for "
        "each; auto is all fifteen in an evaluation, none in a repair.",
    )
    max_inputs: Auto | Annotated[int, Field(ge=1, le=20_000_000)] = Field(
        "auto", description="So many test inputs at most, drawn by the seed, go through corruptions; auto is 1000."
    )
    slices: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [],
        max_length=16,
        json_schema_extra={"uniqueItems": True},
        description="Columns of the test data (`time_of_day`): the metrics of each of their values.",
    )
    controls: (
        Literal["auto", "none"]
        | Annotated[list[Control], Field(min_length=1, max_length=2, json_schema_extra={"uniqueItems": True})]
    ) = Field(
        "auto",
        description="What a repair is compared with, on the same test inputs: `weights` fine-tunes what the repair "
        "changed and nothing but its weights, `random_block` is the same method on a block drawn at random. Each takes "
        "as long as the repair did; auto is both where that is at most 30 seconds.",
    )
    min_slice: int = Field(20, ge=1, le=1_000_000, description="Values with fewer inputs are counted, not measured.")

    @field_validator("corruptions", "slices", "controls")
    @classmethod
    def _named_once(cls, names: str | list[str]) -> str | list[str]:
        if not isinstance(names, str) and len(set(names)) < len(names):
            raise ValueError(f"a name stands twice in {', '.join(names)}")
        return names


def _data_by_kind(schema: dict[str, Any]) -> None:
    """Say in the schema what `_data_is_complete` checks."""
    schema["anyOf"] = [
        {
            "properties": {
                "kind": {"enum": [kind for kind in REQUIRED_DATA if REQUIRED_DATA[kind][0] == role]},
                "datasets": {"required": [role], "properties": {role: {"type": "string"}}},
            },
            "required": ["datasets", *(["kind"] if role == "test" else [])],
        }
        for role in ("repair", "test")
    ]


class RepairSpec(Strict):
    """One repair, as asked. The same seed, model, data and spec give the same result on the same machine."""

    model_config = ConfigDict(json_schema_extra=_data_by_kind)
    kind: Literal["repair", "localize", "evaluate"] = Field(
        "repair",
        description="localize stops at the ranking of the blocks; evaluate only measures the model on test and "
        "regression, alone or against model.reference.",
    )
    datasets: DatasetReferences
    model: Model = Model()
    preprocessing: Preprocessing = Preprocessing()
    localization: Localization = Localization()
    repair: Repair = Repair()
    evaluation: Evaluation = Evaluation()
    gates: Auto | Annotated[list[GateExpression], Field(max_length=64)] = "auto"
    outputs: Auto | OutputFormats = Field(
        "auto", description="Formats of the repaired model; auto is the format of the uploaded one."
    )
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("datasets")
    @classmethod
    def _data_is_complete(cls, datasets: DatasetReferences, info: ValidationInfo) -> DatasetReferences:
        kind = info.data.get("kind", "")  # empty where it is wrong, which is said already
        role, purpose = REQUIRED_DATA.get(kind, ("", ""))
        if role and getattr(datasets, role) is None:
            missing = PydanticCustomError("missing", f"a job of kind {kind} needs datasets.{role}: {purpose}")
            details = InitErrorDetails(type=missing, loc=(role,), input=None)
            raise ValidationError.from_exception_data("datasets", [details])
        return datasets

    @field_validator("gates")
    @classmethod
    def _gates_parse(cls, gates: Auto | list[str]) -> Auto | list[str]:
        for gate in [] if gates == "auto" else gates:
            parse_gate(gate)
        return gates

    @field_validator("outputs")
    @classmethod
    def _outputs_differ(cls, outputs: Auto | list[OutputFormat]) -> Auto | list[OutputFormat]:
        if outputs != "auto" and len(set(outputs)) < len(outputs):
            raise ValueError(f"a format stands twice in {', '.join(outputs)}")
        return outputs


def resolve_corruptions(spec: RepairSpec) -> list[CommonCorruption]:
    """The corruptions to measure under."""
    asked = spec.evaluation.corruptions
    if asked == "auto":
        asked = "common-15x5" if spec.kind == "evaluate" else "none"
    if asked == "none":
        return []
    return list(COMMON_CORRUPTIONS) if asked == "common-15x5" else list(asked)


def resolve_controls(spec: RepairSpec) -> list[Control]:
    """The controls of a job; `auto` are both in a repair."""
    asked = spec.evaluation.controls
    if spec.kind != "repair" or asked == "none":
        return []
    return ["weights", "random_block"] if asked == "auto" else list(asked)


def resolve_outputs(asked: Auto | list[OutputFormat], own: OutputFormat) -> list[OutputFormat]:
    """The formats to write, the uploaded model's own first where it is among them."""
    formats = [own] if asked == "auto" else list(asked)
    return sorted(formats, key=lambda format_: format_ != own)


def format_of_file(name: str) -> OutputFormat | None:
    """The format of a file this engine wrote, by its suffix."""
    return next((format_ for format_, suffix in FILE_SUFFIXES.items() if name.endswith(suffix)), None)
