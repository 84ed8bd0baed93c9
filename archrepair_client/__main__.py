"""`python -m archrepair_client` is the command `archrepair`."""

from archrepair_client.cli import app

app()
