"""What a model is, before any data: read, proven equal to its file on random inputs, and its blocks found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from archrepair_core.blocks import Block
from archrepair_core.errors import ModelError
from archrepair_core.ingest.model import Format, IngestedModel, ingest_model
from archrepair_core.ingest.verify import verify_decompiled
from archrepair_core.input_shapes import Shape, example_inputs, guess_input_shape
from archrepair_core.interface import refuse_several_inputs
from archrepair_core.runs import find_blocks_

BLOCK_FACTS = (
    "name",
    "kind",
    "level",
    "input_shape",
    "output_shape",
    "num_params",
    "macs",
    "latency_share",
    "depth",
)
ShapeSource = Literal["given", "file", "guessed", "data"]


@dataclass(frozen=True)
class Inspection:
    """Facts of a model. `input_shape` is without the batch and says where it came from.

    `blocks` is empty exactly when `blocks_unknown` says why: the model is sound, but no input was found to run it on.
    """

    format: Format
    written_by: str
    num_parameters: int
    input_shape: Shape | None
    input_shape_source: ShapeSource | None
    blocks: tuple[Block, ...]
    blocks_unknown: ModelError | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain data; `blocks` carry the stage they are in."""
        reason = self.blocks_unknown
        return {
            "format": self.format,
            "written_by": self.written_by,
            "num_parameters": self.num_parameters,
            "input_shape": list(self.input_shape) if self.input_shape is not None else None,
            "input_shape_source": self.input_shape_source,
            "blocks": [_block_json(block, self.blocks) for block in self.blocks],
            "blocks_unknown": reason.to_problem() if reason is not None else None,
        }


# A shape that does not fit says nothing against the model.
UNFIT_SHAPES = ("model.input_shape_unknown", "model.input_shape_too_large", "model.fails_on_inputs")


def inspect_model(path: Path, work_dir: Path, *, input_shape: Shape | None = None) -> Inspection:
    """Read the model of a file and find its blocks, with inputs of `input_shape`, or of the likeliest one.

    Raises ModelError for a file that cannot be repaired; a shape that does not fit is no such error.
    """
    ingested = ingest_model(path, work_dir)
    refuse_several_inputs(ingested.reference)
    shape, source = _named_shape(ingested, input_shape)
    try:
        shape = shape or guess_input_shape(ingested.model)
        inputs = example_inputs(ingested.model, shape)
        verify_decompiled(ingested.reference, ingested.model, inputs)
    except ModelError as error:
        if error.code not in UNFIT_SHAPES:
            raise
        return describe_model(ingested, (), shape=shape, source=source if shape else None, unknown=error)
    return describe_model(ingested, find_blocks_(ingested.model, inputs), shape=shape, source=source)


def _named_shape(ingested: IngestedModel, given: Shape | None) -> tuple[Shape | None, ShapeSource]:
    """The shape somebody has named, the customer before the file; None is to be guessed."""
    if given is not None:
        return given, "given"
    # Blocks are found with one tensor: of several inputs, none alone would do.
    return (ingested.input_shapes[0], "file") if len(ingested.input_shapes) == 1 else (None, "guessed")


def describe_model(
    ingested: IngestedModel,
    blocks: Sequence[Block],
    *,
    shape: Shape | None,
    source: ShapeSource | None,
    unknown: ModelError | None = None,
) -> Inspection:
    """The facts of a model whose blocks somebody has found."""
    return Inspection(
        ingested.format, ingested.written_by, num_parameters(ingested.model), shape, source, tuple(blocks), unknown
    )


def _block_json(block: Block, blocks: Sequence[Block]) -> dict[str, Any]:
    return {name: getattr(block, name) for name in BLOCK_FACTS} | {"stage": stage_of(block, blocks)}


def num_parameters(model: nn.Module) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def stage_of(block: Block, blocks: Sequence[Block]) -> str | None:
    """The name of the innermost stage around a block, None at the top."""
    around = [other.name for other in blocks if other.level == "stage" and block.name.startswith(f"{other.name}.")]
    return max(around, key=len, default=None)
