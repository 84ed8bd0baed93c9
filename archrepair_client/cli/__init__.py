"""The command `archrepair`: a file per group of commands."""

from archrepair_client.cli.main import app

__all__ = ["app"]
