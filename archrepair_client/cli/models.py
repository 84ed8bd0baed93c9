"""`archrepair models …`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from archrepair_client.cli.options import AsJson, Limit, Quiet, connected
from archrepair_client.display import Display
from archrepair_client.errors import BadInput
from archrepair_client.exits import BAD_MODEL_OR_DATA
from archrepair_client.output import Column, Output

app = typer.Typer()
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="mdl_…")]
COLUMNS: Mapping[str, Column] = {
    "id": lambda model: model.id,
    "state": lambda model: model.state,
    "file": lambda model: model.filename,
    "format": lambda model: model.format,
    "parameters": lambda model: f"{model.num_parameters:,}" if model.num_parameters is not None else "",
    "blocks": lambda model: model.num_blocks,
    "input": lambda model: "x".join(map(str, model.input_shape or [])),
    "created": lambda model: model.created_at,
}
FIELDS = {**COLUMNS, "sha256": lambda model: model.sha256, "error": lambda model: model.error and model.error.detail}
BLOCK_COLUMNS: Mapping[str, Column] = {
    "name": lambda block: block.name,
    "kind": lambda block: block.kind,
    "level": lambda block: block.level,
    "input": lambda block: "x".join(map(str, block.input_shape)),
    "output": lambda block: "x".join(map(str, block.output_shape)),
    "parameters": lambda block: f"{block.num_params:,}",
    "macs": lambda block: f"{block.macs:,}",
    "time": lambda block: f"{block.latency_share:.1%}",
}


@app.command("list")
def list_models(limit: Limit = 20, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """The project's models, newest first."""
    with connected() as client:
        Output(as_json, quiet).items(client.models.list(limit=limit), COLUMNS)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A TorchScript or .pt2 file.")],
    input_shape: Annotated[str | None, typer.Option(help="Of one input, e.g. 3x224x224.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Register a model, and wait for what its inspection finds."""
    with connected() as client:
        with Display(quiet=quiet) as display:
            made = client.models.create(file, input_shape=_shape(input_shape), on_transfer=display.transfer)
        model = client.models.wait(made.id)
    Output(as_json, quiet).item(model, FIELDS)
    if model.error is not None:
        raise typer.Exit(BAD_MODEL_OR_DATA)


def _shape(text: str | None) -> list[int] | None:
    try:
        return [int(side) for side in text.split("x")] if text else None
    except ValueError:
        raise BadInput(f"--input-shape {text!r} is not like 3x224x224") from None


@app.command()
def show(model: ModelId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """One model."""
    with connected() as client:
        Output(as_json, quiet).item(client.models.retrieve(model), FIELDS)


@app.command()
def blocks(model: ModelId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """The blocks a repair can work on, in the order they run."""
    with connected() as client:
        Output(as_json, quiet).items(client.models.blocks(model), BLOCK_COLUMNS)


@app.command()
def delete(model: ModelId, quiet: Quiet = False) -> None:
    """Delete a model that no unfinished job uses."""
    with connected() as client:
        client.models.delete(model)
    Output(quiet=quiet).note(f"deleted {model}")
