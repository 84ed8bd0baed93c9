import os
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.prepare import prepare
from app.shared.db import make_engine, upgrade_schema
from app.shared.tables import Project
from tests.servers import environment_of


@pytest.fixture
def projects(settings):
    """Runs `python -m app.projects` as an operator does; gives exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "-m", "app.projects", *words], capture_output=True, text=True,
                              env=os.environ | environment_of(settings))  # fmt: skip
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    return run


@pytest.mark.slow
def test_an_operator_makes_a_project_and_its_first_key(projects, settings, sessions):
    code, line, _ = projects("create", "acme", "--quota", "running_jobs=2", "models=5")
    assert code == 0
    assert line.endswith("acme  quotas: models=5 running_jobs=2")
    code, key, _ = projects("key", "acme")
    assert code == 0
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
        assert [row["name"] for row in client.get("/v1/api-keys").json()["data"]] == ["first"]
    code, out, error = projects("key", "acme")
    assert (code, out) == (1, "")
    assert "--another" in error
    assert key.split("_", 2)[2] not in error
    assert projects("key", "acme", "--another")[1] not in ("", key)
    assert projects("quota", "acme", "models=", "queued_jobs=9")[1].endswith("quotas: queued_jobs=9 running_jobs=2")
    with sessions() as session:
        quotas = {row.name: row.quotas for row in session.query(Project)}
    assert quotas == {"default": {}, "acme": {"queued_jobs": 9, "running_jobs": 2}}
    assert "acme" in projects("list")[1]


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_what_an_operator_got_wrong_is_said(projects):
    for words, said in (
        (("create", "default"), "'default' already"),
        (("create", "line\nbreak"), "printable"),
        (("create", "b", "--quota", "jobs=1"), "there are queued_jobs, running_jobs"),
        (("create", "c", "--quota", "models=many"), "models=2"),
        (("key", "nobody"), "'nobody'"),
    ):
        code, out, error = projects(*words)
        assert (code, out) == (1, "")
        assert said in error
        assert len(error.splitlines()) == 1
    assert projects("list")[1].count("\n") == 0


def test_production_does_not_start_without_a_key(stack, settings, tmp_path):
    if stack.name == "embedded":
        assert prepare(settings).exists()
        return
    empty = stack.fresh(tmp_path / "other")
    engine = make_engine(empty.database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM api_keys")
    engine.dispose()
    upgrade_schema(empty.database_url)
    with pytest.raises(RuntimeError, match=r"app\.prepare"), TestClient(create_app(empty)):
        pass
