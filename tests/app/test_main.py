import subprocess
import sys
import threading
import time

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete

from app.main import create_app
from app.shared.db import make_engine, make_sessions
from app.shared.tables import ApiKey


def test_the_gateway_never_imports_torch_or_numpy():
    code = "import sys, app.main; sys.exit(sorted({'torch', 'numpy', 'worker'} & set(sys.modules)) != [])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_stop_does_not_wait_for_long_polls(own_gateway, submission):
    job = own_gateway.client.post("/v1/jobs", files=submission()).json()
    answers: list[int] = []

    def wait() -> None:
        answers.append(own_gateway.client.get(f"/v1/jobs/{job['id']}?wait=30").status_code)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.5)
    started = time.monotonic()
    own_gateway.process.terminate()
    own_gateway.process.wait(20)
    waiter.join()
    assert time.monotonic() - started < 10
    assert answers == [200]


def test_an_embedded_gateway_prepares_itself(embedded, tmp_path):
    settings = embedded.fresh(tmp_path / "state")
    engine = make_engine(settings.database_url)
    with make_sessions(engine).begin() as session:
        session.execute(delete(ApiKey))
    engine.dispose()
    key = (settings.state_dir / "api-key").read_text().strip()
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.get("/v1/jobs").status_code == 200


def test_without_a_broker_url_the_gateway_says_what_to_do(settings):
    app = create_app(settings.model_copy(update={"broker_url": None}))
    with pytest.raises(ValueError, match="archrepair up"), TestClient(app):
        pass
