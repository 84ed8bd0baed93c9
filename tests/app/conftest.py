"""Fixtures of the gateway's tests alone."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session, sessionmaker

from app.keys import create_api_key, ensure_project
from app.main import create_app
from app.shared.settings import Settings


@pytest.fixture
def stranger_key(gateway_sessions: sessionmaker[Session]) -> str:
    """A key of another project on the same gateway."""
    with gateway_sessions.begin() as session:
        return create_api_key(session, project_id=ensure_project(session, "strangers").id, name="stranger")


@pytest.fixture
def read_only_key(gateway_sessions: sessionmaker[Session]) -> str:
    with gateway_sessions.begin() as session:
        project_id = ensure_project(session).id
        return create_api_key(session, project_id=project_id, name="dashboard", scopes=["jobs:read"])


@pytest.fixture
def in_process_gateway() -> Callable[[Path, str], AbstractContextManager[TestClient]]:
    """A gateway in this process, for what a shared one would not survive: broken databases and brokers."""

    @contextmanager
    def start(state_dir: Path, broker_url: str) -> Iterator[TestClient]:
        settings = Settings(
            state_dir=state_dir,
            database_url=f"sqlite:///{state_dir}/archrepair.db",
            store_url=(state_dir / "objects").as_uri(),
            broker_url=broker_url,
        )
        key = (state_dir / "api-key").read_text().strip()
        with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
            yield client

    return start


@pytest.fixture
def own_gateway(migrated_state: Path, broker_url: str, tmp_path: Path, start_gateway) -> Iterator[Any]:
    """A fresh gateway process with the default limits, to be measured or stopped."""
    state_dir = Path(shutil.copytree(migrated_state, tmp_path / "state"))
    with start_gateway(state_dir, broker_url) as running:
        yield running
