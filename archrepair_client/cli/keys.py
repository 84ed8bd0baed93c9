"""`archrepair keys …`."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from archrepair_client.cli.options import AsJson, Limit, Quiet, connected, seconds_of
from archrepair_client.output import Column, Output, write_json, write_lines

app = typer.Typer()
# What a pipeline needs for `archrepair ci`, and no more.
CI_SCOPES = ("jobs:read", "jobs:write", "models:read", "models:write", "uploads:read", "uploads:write")
COLUMNS: Mapping[str, Column] = {
    "id": lambda key: key.id,
    "name": lambda key: key.name,
    "prefix": lambda key: key.prefix,
    "scopes": lambda key: key.scopes,
    "last used": lambda key: key.last_used_at,
    "expires": lambda key: key.expires_at,
}


@app.command("list")
def list_keys(limit: Limit = 20, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """The keys that are not revoked, newest first."""
    with connected() as client:
        Output(as_json, quiet).items(client.keys.list(limit=limit), COLUMNS)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who uses it, where.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="What it may do; without any, what `archrepair ci` needs.")
    ] = None,
    expires_in: Annotated[str | None, typer.Option(help="It ends by itself: 12h, 90d.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once, alone on stdout."""
    lifetime = seconds_of(expires_in)
    ends = datetime.now(UTC) + timedelta(seconds=lifetime) if lifetime is not None else None
    with connected() as client:
        made = client.keys.create(name, scopes=scope or CI_SCOPES, expires_at=ends)
    if as_json:
        write_json(made.model_dump(mode="json"))
        return
    Output().note(f"{made.id} may {', '.join(made.scopes)}")
    write_lines([made.key or ""])


@app.command()
def delete(key: Annotated[str, typer.Argument(metavar="KEY", help="key_…")], quiet: Quiet = False) -> None:
    """Revoke a key: the next request with it is refused."""
    with connected() as client:
        client.keys.delete(key)
    Output(quiet=quiet).note(f"revoked {key}")
