"""A browser without a screen: it keeps cookies, and asks as our own pages do."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest

OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


def sign_in(client: httpx.Client, key: str, **form: str) -> httpx.Response:
    return client.post("/ui/sign-in", data={"key": key, **form})


@pytest.fixture
def browse(gateway) -> Callable[[str], AbstractContextManager[httpx.Client]]:
    """A client that is signed in with a key."""

    @contextmanager
    def open_browser(key: str) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=gateway.url, headers=OWN_PAGE, timeout=30) as client:
            answer = sign_in(client, key)
            assert answer.status_code == 303, answer.text
            yield client

    return open_browser


@pytest.fixture
def browser(gateway, browse) -> Iterator[httpx.Client]:
    """One that is signed in with the service's own key."""
    with browse(gateway.key) as client:
        yield client
