"""`archrepair datasets …`."""

from collections.abc import Mapping
from typing import Annotated

import typer

from archrepair_client.cli.options import AsJson, Limit, Metadata, Quiet, connected, pairs_of
from archrepair_client.display import Display
from archrepair_client.exits import BAD_MODEL_OR_DATA
from archrepair_client.output import Column, Output

app = typer.Typer()
DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="ds_…")]
COLUMNS: Mapping[str, Column] = {
    "id": lambda dataset: dataset.id,
    "state": lambda dataset: dataset.state,
    "name": lambda dataset: dataset.name,
    "format": lambda dataset: dataset.format,
    "samples": lambda dataset: dataset.num_samples,
    "classes": lambda dataset: dataset.num_classes,
    "created": lambda dataset: dataset.created_at,
    "metadata": lambda dataset: dataset.metadata,
}
FIELDS = {
    **COLUMNS,
    "reference": lambda dataset: dataset.reference,
    "sha256": lambda dataset: dataset.sha256,
    "error": lambda dataset: dataset.error and dataset.error.detail,
}


@app.command("list")
def list_datasets(limit: Limit = 20, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """The project's datasets, newest first."""
    with connected() as client:
        Output(as_json, quiet).items(client.datasets.list(limit=limit), COLUMNS)


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="A file, or https://…, s3://…, builtin:digits.")],
    name: Annotated[str | None, typer.Option(help="For people; else the name of the file.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Of the file; https:// needs it.")] = None,
    metadata: Metadata = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Register data, and wait until it has been read."""
    with connected() as client:
        with Display(quiet=quiet) as display:
            pairs = pairs_of(metadata, option="--metadata")
            made = client.datasets.create(
                source, name=name, sha256=sha256, metadata=pairs, on_transfer=display.transfer
            )
        dataset = client.datasets.wait(made.id)
    Output(as_json, quiet).item(dataset, FIELDS)
    if dataset.error is not None:
        raise typer.Exit(BAD_MODEL_OR_DATA)


@app.command()
def show(dataset: DatasetId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """One dataset."""
    with connected() as client:
        Output(as_json, quiet).item(client.datasets.retrieve(dataset), FIELDS)


@app.command()
def delete(dataset: DatasetId, quiet: Quiet = False) -> None:
    """Delete a dataset. Jobs that were given it keep its content."""
    with connected() as client:
        client.datasets.delete(dataset)
    Output(quiet=quiet).note(f"deleted {dataset}")
