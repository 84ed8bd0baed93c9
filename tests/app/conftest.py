"""Fixtures of the gateway's tests alone."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session, sessionmaker

from app.keys import create_api_key, ensure_project
from app.main import create_app
from app.shared.ids import new_id
from app.shared.settings import Settings
from app.shared.tables import Project


@pytest.fixture
def stranger_key(gateway_sessions: sessionmaker[Session]) -> str:
    """A key of another project on the same gateway."""
    with gateway_sessions.begin() as session:
        return create_api_key(session, project_id=ensure_project(session, new_id("strangers")).id, name="stranger")


@pytest.fixture
def read_only_key(gateway_sessions: sessionmaker[Session]) -> str:
    with gateway_sessions.begin() as session:
        project_id = ensure_project(session).id
        return create_api_key(session, project_id=project_id, name="dashboard", scopes=["jobs:read"])


@pytest.fixture
def in_process_gateway() -> Callable[[Settings], AbstractContextManager[TestClient]]:
    """A gateway in this process, for what a shared one would not survive: broken databases and brokers."""

    @contextmanager
    def start(settings: Settings) -> Iterator[TestClient]:
        key = (settings.state_dir / "api-key").read_text().strip()
        with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
            yield client

    return start


@pytest.fixture
def own_gateway(settings: Settings, start_gateway) -> Iterator[Any]:
    """A fresh gateway process with the default limits, to be measured or stopped."""
    with start_gateway(settings) as running:
        yield running


@pytest.fixture
def tenant(gateway, gateway_sessions):
    """A client of a project of its own, and how to set the project's quotas."""
    with gateway_sessions.begin() as session:
        project = ensure_project(session, new_id("tenant"))
        key = create_api_key(session, project_id=project.id, name="ci")

    def set_quotas(**quotas: int) -> None:
        with gateway_sessions.begin() as session:
            session.get_one(Project, project.id).quotas = quotas

    with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        yield client, project.id, set_quotas
