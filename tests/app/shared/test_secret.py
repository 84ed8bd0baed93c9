import threading

import pytest

from app.shared.secret import service_secret


def test_an_embedded_service_makes_its_secret_once_and_keeps_it_private(embedded, tmp_path):
    settings = embedded.fresh(tmp_path / "state")
    found = []
    threads = [threading.Thread(target=lambda: found.append(service_secret(settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found[0]) >= 32
    assert (settings.state_dir / "secret-key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in settings.state_dir.glob(".secret-key*")) == []


def test_production_says_what_is_missing(embedded, tmp_path):
    settings = embedded.fresh(tmp_path / "state", secret_key=None)
    settings = settings.model_copy(update={"database_url": "postgresql+psycopg://db/archrepair"})
    with pytest.raises(ValueError, match="ARCHREPAIR_SECRET_KEY"):
        service_secret(settings)
    assert service_secret(settings.model_copy(update={"secret_key": "s" * 32})) == b"s" * 32
