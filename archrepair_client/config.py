"""Which service, with which key: a flag before the environment before the configuration file before this machine's own.

A key goes only to the service it was given for: that of the configuration file never to a URL of the environment.
"""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from archrepair_client.errors import NoApiKey, NotConfigured
from archrepair_client.running import find_service

URL_VARIABLE, KEY_VARIABLE = "ARCHREPAIR_URL", "ARCHREPAIR_API_KEY"
STATE_DIR_VARIABLE, DEFAULT_STATE_DIR = "ARCHREPAIR_STATE_DIR", "~/.archrepair"


@dataclass(frozen=True)
class Access:
    """A service and a key to it, and where each was found."""

    url: str
    api_key: str = field(repr=False)
    url_from: str = "an argument"
    key_from: str = "an argument"


@dataclass(frozen=True)
class _Layer:
    name: str
    url: str | None = None
    key: str | None = field(default=None, repr=False)


def config_path() -> Path:
    """The configuration file, which `archrepair login` writes."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "archrepair" / "config.toml"


def find_access(url: str | None = None, api_key: str | None = None) -> Access:
    """Where the service is and the key to it. Raises NotConfigured, which says what to do."""
    layers = [*_layers(url, api_key)]
    place = next((place for place, layer in enumerate(layers) if layer.url), None)
    if place is None:
        raise NotConfigured(
            f"which service? None is up on this machine, and neither {URL_VARIABLE} nor {config_path()} names one. "
            "Start one with `archrepair up`, or log in to one with `archrepair login URL`."
        )
    found = layers[place]
    # A key without a URL beside it is meant for any; one beside another URL is not.
    fitting = [*layers[: place + 1], *(layer for layer in layers if layer.url in (None, found.url))]
    key = next((layer for layer in fitting if layer.key), None)
    if key is None:
        raise NoApiKey(
            f"no API key for {found.url}, which {found.name} names. Give one there too (--key-file, {KEY_VARIABLE}), "
            f"or store one with `archrepair login {found.url}`. A key that stands beside another URL is not sent there."
        )
    return Access(str(found.url), str(key.key), found.name, key.name)


def plain_url(url: str | None) -> str | None:
    """The URL without what may stand at its end or not."""
    return url.rstrip("/").removesuffix("/v1") if url else None


def _layers(url: str | None, api_key: str | None) -> Iterator[_Layer]:
    yield _Layer("an argument", plain_url(url), api_key)
    yield _Layer("the environment", plain_url(os.environ.get(URL_VARIABLE)), os.environ.get(KEY_VARIABLE))
    stored = read_config()
    yield _Layer(str(config_path()), plain_url(stored.get("url")), stored.get("api_key"))
    state_dir = Path(os.environ.get(STATE_DIR_VARIABLE) or DEFAULT_STATE_DIR)
    if (service := find_service(state_dir)) is not None:
        with suppress(OSError):  # of another user: without a key to it, it is none of ours
            yield _Layer(str(state_dir), service.url, service.api_key)


def read_config() -> Mapping[str, str]:
    """What the configuration file says; nothing without one. Raises NotConfigured for one that cannot be read."""
    path = config_path()
    try:
        return {name: str(value) for name, value in tomllib.loads(path.read_text("utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NotConfigured(f"{path} cannot be read: {error}. Correct it, or delete it and log in again.") from error


def write_config(url: str, api_key: str) -> Path:
    """Store them for this user alone; the file never exists half, nor readable for others."""
    path = config_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f".config.toml.{os.getpid()}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        # A JSON string is a TOML string too.
        file.write(f"url = {json.dumps(url)}\napi_key = {json.dumps(api_key)}\n")
    return unfinished.replace(path)
