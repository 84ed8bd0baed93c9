from pathlib import Path

import pytest
from pydantic import ValidationError

from app.shared.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch):
    for name in ("STATE_DIR", "DATABASE_URL", "BROKER_URL", "STORE_URL", "LEASE_SECONDS"):
        monkeypatch.delenv(f"ARCHREPAIR_{name}", raising=False)


def test_without_urls_everything_is_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ARCHREPAIR_STATE_DIR", str(tmp_path))
    settings = Settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/archrepair.db"
    assert settings.store_url == f"file://{tmp_path}/objects"
    assert (settings.broker_url, settings.lease_seconds) == (None, 10)


def test_a_half_configured_service_names_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ARCHREPAIR_DATABASE_URL", "postgresql+psycopg://db/archrepair")
    with pytest.raises(ValidationError, match="ARCHREPAIR_BROKER_URL, ARCHREPAIR_STORE_URL"):
        Settings()


def test_production_has_a_longer_lease(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ARCHREPAIR_DATABASE_URL", "postgresql+psycopg://db/archrepair")
    monkeypatch.setenv("ARCHREPAIR_BROKER_URL", "redis://broker/0")
    monkeypatch.setenv("ARCHREPAIR_STORE_URL", "s3://bucket")
    assert Settings().lease_seconds == 60


@pytest.mark.parametrize(("level", "known"), [("INFO", True), ("warning", True), ("LOUD", False)])
def test_a_log_level_there_is_not_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch, level: str, known: bool):
    monkeypatch.setenv("ARCHREPAIR_LOG_LEVEL", level)
    if known:
        assert Settings().log_level == level
        return
    with pytest.raises(ValidationError, match="log_level"):
        Settings()
