"""`archrepair login`: keep a service and its key for this user."""

import sys
from typing import Annotated

import typer

from archrepair_client.client import ArchRepair
from archrepair_client.config import find_access, plain_url, write_config
from archrepair_client.errors import BadInput, NotConfigured, PermissionDenied


def login(
    url: Annotated[
        str | None, typer.Argument(help="e.g. https://repair.example.com; without it, as it is now.")
    ] = None,
) -> None:
    """Check an API key, asked for or from stdin, and keep it with the URL in the configuration file."""
    found = plain_url(url) or _known_url()
    if not found.startswith(("http://", "https://")):
        raise BadInput(f"{found!r} is no URL; say https://…")
    key = (typer.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    with ArchRepair(base_url=found, api_key=key) as client:
        try:
            state = f"version {client.system.retrieve().version}"
        except PermissionDenied:
            state = "with a key that may not look at the system"
    typer.echo(f"Logged in to {found}, {state}; kept in {write_config(found, key)}", err=True)


def _known_url() -> str:
    try:
        return find_access(api_key="none yet").url
    except NotConfigured:
        raise BadInput("which service? Say `archrepair login https://…`") from None
