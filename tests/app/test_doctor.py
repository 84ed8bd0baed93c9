"""`python -m app.doctor` on deployments that are well, and on each with one thing really broken."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import obstore
import pytest
from alembic import command
from obstore.exceptions import BaseError as StoreError
from obstore.store import S3Store
from sqlalchemy import text, update

from app.doctor import CHECKS
from app.shared.checks import check_clock, check_disk
from app.shared.checkup import Check, Finding, as_json, as_text, examine, fail, main, secrets_of, worst
from app.shared.db import make_engine, migration_config
from app.shared.jobs import submit_job
from app.shared.secret import service_secret
from app.shared.settings import Settings
from app.shared.storage import IMPATIENT, open_store
from app.shared.tables import ApiKey, Job, WorkerRow
from app.shared.workers import Worker, note_worker
from tests.servers import (
    BUCKET,
    LOOPBACK,
    accepts,
    client_environment,
    environment_of,
    execute_alone,
    free_port,
    running,
    store_answers,
    store_command,
    store_ports,
    stored_keys,
    valkey_command,
    wait_until,
)

WRONG = "WRONG-SECRET-0d7e"
WORKER = Worker("host:1:A", ("cpu",), "cpu", "0.1.0")


@pytest.fixture
def complete(settings: Settings, sessions) -> Settings:
    """A deployment at which nothing is to be found fault with."""
    service_secret(settings)
    open_store(settings.store_url)
    with sessions.begin() as session:
        note_worker(session, WORKER)
    return settings.model_copy(update={"port": free_port()})


@pytest.fixture
def look(monkeypatch) -> Callable[..., dict[str, Finding]]:
    """Findings by name, with the settings in the environment as a process has them; none shows a secret."""

    def examined(settings: Settings, checks=CHECKS, **variables: str) -> dict[str, Finding]:
        with monkeypatch.context() as patch:
            for name, value in (environment_of(settings) | variables).items():
                patch.setenv(name, value)
            secrets = secrets_of(os.environ)
            findings = examine(checks)
        said = as_text(findings) + as_json(findings)
        assert not [secret for secret in secrets if secret in said]
        return {finding.name: finding for finding in findings}

    return examined


def changed(settings: Settings, **values: Any) -> Settings:
    return settings.model_copy(update=values)


def is_embedded(settings: Settings) -> bool:
    return settings.database_url.startswith("sqlite")


def password_of(url: str) -> str:
    return url.rpartition("@")[0].rpartition(":")[2]


def execute(settings: Settings, statement: str) -> None:
    engine = make_engine(settings.database_url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_a_deployment_that_is_well_is_told_so_and_left_as_it_was(complete, look):
    found = look(complete)
    assert {name: finding.detail for name, finding in found.items() if finding.status != "ok"} == {}
    assert set(found) == {"settings", *(check.name for check in CHECKS)}
    assert stored_keys(complete) == []


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_a_wrong_password_of_the_database_is_named_and_what_needs_it_not_asked(complete, look):
    wrong = complete.database_url.replace(password_of(complete.database_url), WRONG)
    found = look(changed(complete, database_url=wrong))
    assert found["database"].status == "fail"
    assert "password authentication failed" in found["database"].detail
    assert "ARCHREPAIR_DATABASE_URL" in found["database"].hint
    assert {found[name].detail for name in ("schema", "clock", "workers", "versions", "api keys")} == {"not asked"}
    assert (found["broker"].status, found["store"].status) == ("ok", "ok")


def test_a_database_that_is_away_or_is_none_is_named(complete, look):
    if is_embedded(complete):
        for path in complete.state_dir.glob("archrepair.db*"):
            path.unlink()
        assert look(complete)["database"].status == "warn", "it is not there yet"
        assert not (complete.state_dir / "archrepair.db").exists(), "nor is it made by looking"
        (complete.state_dir / "archrepair.db").write_bytes(b"not a database at all" * 500)
        assert "not a database" in look(complete)["database"].detail
        return
    away = f"postgresql+psycopg://u:{WRONG}@{LOOPBACK}:{free_port()}/d"
    found = look(changed(complete, database_url=away))["database"]
    assert (found.status, "refused" in found.detail) == ("fail", True)


def test_a_database_that_only_reads_is_named(complete, look):
    if is_embedded(complete):
        url = f"sqlite:///file:{complete.state_dir}/archrepair.db?mode=ro&uri=true"
        found = look(changed(complete, database_url=url))["database"]
    else:
        name = complete.database_url.rpartition("/")[2]
        execute_alone(complete.database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        found = look(complete)["database"]
    assert found.status == "fail"
    assert "readonly" in found.detail or "read-only" in found.detail


def test_a_schema_behind_ahead_or_not_there_is_named(complete, look):
    command.downgrade(migration_config(complete.database_url), "0002")
    behind = look(complete)["schema"]
    assert (behind.status, "0002" in behind.detail, "app.prepare" in behind.hint) == ("fail", True, True)
    execute(complete, "UPDATE alembic_version SET version_num = 'of_2031'")
    ahead = look(complete)["schema"]
    assert (ahead.status, "newer" in ahead.detail) == ("fail", True)
    execute(complete, "DROP TABLE alembic_version")
    found = look(complete)
    assert (found["schema"].status, found["schema"].detail) == ("fail", "the database has no schema")
    assert found["workers"].detail == "not asked"


def test_clocks_that_differ_are_named_with_the_seconds(complete, look):
    shifted = check_clock(complete, now=lambda: time.time() + 100)
    assert (shifted.status, shifted.detail) == ("fail", "100.0 s between this host and the database")
    assert check_clock(complete, now=lambda: time.time() - 10).status == "warn"
    if is_embedded(complete):
        return  # its clock is this host's
    name = complete.database_url.rpartition("/")[2]
    execute(complete, "CREATE SCHEMA late")
    execute(complete, "CREATE FUNCTION late.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
                      "$$ SELECT pg_catalog.clock_timestamp() - interval '1 hour' $$")  # fmt: skip
    execute_alone(complete.database_url, f"ALTER DATABASE {name} SET search_path = late, public, pg_catalog")
    assert look(complete)["clock"].status == "fail"


def test_a_broker_with_another_password_or_away_is_named(complete, look):
    assert complete.broker_url is not None
    wrong = complete.broker_url.replace(password_of(complete.broker_url), WRONG)
    refused = look(changed(complete, broker_url=wrong))["broker"]
    assert (refused.status, "password" in refused.hint) == ("fail", True)
    away = look(changed(complete, broker_url=f"redis://:{WRONG}@{LOOPBACK}:{free_port()}/0"))["broker"]
    assert (away.status, "Check that" in away.hint) == ("fail", True)


def test_a_broker_that_lets_anybody_in_is_named(complete, look):
    port = free_port()
    with running(valkey_command(port, "")):
        wait_until(lambda: accepts(port), seconds=10, what="the broker's start")
        found = look(changed(complete, broker_url=f"redis://{LOOPBACK}:{port}/0"))["broker"]
    assert (found.status, "requirepass" in found.hint) == ("warn", True)


def has_bucket(environment: Mapping[str, str]) -> bool:
    """A store that asks for a key says so before it looks whether the bucket is there."""
    options = {"client_options": {"allow_http": True}, "retry_config": IMPATIENT}
    keys = {
        "access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
    }
    store = S3Store(BUCKET, endpoint=environment["AWS_ENDPOINT_URL"], region="us-east-1", **keys, **options)
    try:
        return obstore.list(store).collect() is not None
    except StoreError:
        return False


@pytest.fixture(scope="module")
def guarded_store() -> Iterator[Callable[[str], dict[str, str]]]:
    """A store that knows some users; gives the variables of one of them."""
    allowed = {"admin": ["Admin", "Read", "Write", "List"], "reader": ["Read", "List"], "writer": ["Write"]}
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": f"SECRET-OF-{name}"}], "actions": actions}
        for name, actions in allowed.items()
    ]
    ports = store_ports()
    with tempfile.TemporaryDirectory(prefix="weed", ignore_cleanup_errors=True) as directory:
        config = Path(directory) / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        words = [*store_command(Path(directory), ports), f"-s3.config={config}", "-s3.autoCreateBucket=false"]
        environment = {**os.environ, "GOMEMLIMIT": "400MiB"}
        with running(words, number=signal.SIGKILL, env=environment, cwd=directory):
            wait_until(lambda: store_answers(ports["s3"]), seconds=30, what="the store's start")
            users = {name: client_environment(ports["s3"], name, f"SECRET-OF-{name}") for name in (*allowed, "nobody")}
            wait_until(lambda: has_bucket(users["admin"]), seconds=30, what="the store's bucket")
            yield users.__getitem__


@pytest.mark.parametrize("stack", ["production"], indirect=True)
@pytest.mark.parametrize(
    ("user", "bucket", "said"),
    [
        ("admin", "no-such-bucket", "NoSuchBucket"),
        ("nobody", BUCKET, "InvalidAccessKeyId"),
        ("reader", BUCKET, "AccessDenied"),
        ("writer", BUCKET, "AccessDenied"),
    ],
)
def test_a_bucket_that_does_not_do_what_is_needed_is_named(complete, look, guarded_store, user, bucket, said):
    broken = changed(complete, store_url=f"s3://{bucket}/prefix")
    found = look(broken, **guarded_store(user))["store"]
    assert (found.status, said in found.detail) == ("fail", True), found
    assert "AWS_ENDPOINT_URL" in found.hint


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_nothing_is_left_in_a_store_that_takes_but_does_not_give(complete, look, guarded_store, monkeypatch):
    broken = changed(complete, store_url=f"s3://{BUCKET}/kept-clean")
    assert look(broken, **guarded_store("writer"))["store"].status == "fail"
    for name, value in guarded_store("admin").items():
        monkeypatch.setenv(name, value)
    listed = [item for page in obstore.list(open_store(broken.store_url)) for item in page]
    assert listed == []


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_a_store_that_is_away_is_named_soon(complete, look):
    found = look(complete, AWS_ENDPOINT_URL=f"http://{LOOPBACK}:{free_port()}", AWS_SECRET_ACCESS_KEY=WRONG)
    assert (found["store"].status, found["database"].status) == ("fail", "ok")


def mounting() -> bool:
    return (
        subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True).returncode == 0
    )


def doctor_in(mounts: str, environment: Mapping[str, str], module: str = "app.doctor") -> dict[str, dict[str, str]]:
    """What it finds where `mounts` were done; nobody outside of this process sees them."""
    inside = f"{mounts} && exec {sys.executable} -m {module} --json"
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return {finding["name"]: finding for finding in json.loads(done.stdout)["checks"]}


@pytest.mark.slow
@pytest.mark.skipif(not mounting(), reason="this system lets nobody mount without being root")
@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_a_directory_that_is_full_or_only_read_is_named(complete):
    objects = complete.state_dir / "objects"
    read_only = f"mount --bind {objects} {objects} && mount -o remount,bind,ro {objects}"
    found = doctor_in(read_only, environment_of(complete))
    assert (found["store"]["status"], "Read-only" in found["store"]["detail"]) == ("fail", True)
    small = doctor_in(f"mount -t tmpfs -o size=4m tmpfs {objects}", environment_of(complete))
    assert (small["store"]["status"], small["store disk"]["status"]) == ("ok", "fail")
    assert small["store disk"]["detail"].startswith("0.0 GiB free")


def test_little_space_is_a_warning(tmp_path):
    assert check_disk(tmp_path / "not" / "yet", little_bytes=1 << 60, least_bytes=1).status == "warn"


def test_a_missing_secret_of_webhooks_is_named(complete, look):
    if is_embedded(complete):
        (complete.state_dir / "secret-key").unlink()
        assert look(complete)["secret"].status == "warn", "it is made at the next start"
        return
    found = look(changed(complete, secret_key=None))["secret"]
    assert (found.status, "openssl" in found.hint) == ("fail", True)


@pytest.mark.parametrize(
    ("name", "mode", "status"),
    [("api-key", 0o644, "fail"), ("api-key", 0o640, "warn"), ("", 0o777, "fail"), ("", 0o755, "ok")],
)
def test_files_that_others_may_read_or_change_are_named(complete, look, name, mode, status):
    path = complete.state_dir / name
    path.chmod(mode)
    found = look(complete)["files"]
    assert found.status == status
    assert (str(path) in found.hint) == (status != "ok")


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_a_state_directory_of_production_without_secrets_may_be_anybodys(complete, look):
    for path in complete.state_dir.iterdir():
        path.unlink()
    complete.state_dir.chmod(0o777)
    assert look(complete)["files"].status == "ok"


def test_without_workers_and_with_silent_ones_it_says_so(complete, look, sessions):
    with sessions.begin() as session:
        session.execute(update(WorkerRow).values(seen_at=WorkerRow.seen_at - 1000))
    assert look(complete)["workers"].detail == "no worker lives"
    with sessions.begin() as session:
        note_worker(session, Worker("host:2:B", ("cpu",), "cpu", "0.0.9"))
    found = look(complete)
    assert (found["workers"].status, "host:1:A" in found["workers"].detail) == ("warn", True)
    assert (found["versions"].status, "1 of 0.0.9" in found["versions"].detail) == ("warn", True)


def test_jobs_that_nobody_will_ever_run_are_named(complete, look, sessions, project_id, model_id):
    with sessions.begin() as session:
        submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)
        session.execute(update(Job).values(queue="gpu"))
    found = look(complete)["workers"]
    assert (found.status, "1 in gpu" in found.detail) == ("fail", True)


def test_a_service_that_lets_nobody_in_is_named(complete, look, sessions):
    with sessions.begin() as session:
        session.execute(update(ApiKey).values(revoked_at=1.0))
    found = look(complete)["api keys"]
    assert (found.status, "app.projects key" in found.hint) == ("fail", True)


def test_a_port_that_another_program_has_is_named(complete, look):
    assert look(complete)["port"].detail.endswith("no gateway runs here")
    with running([sys.executable, "-m", "http.server", complete.port, "--bind", LOOPBACK], cwd="/usr/share"):
        wait_until(lambda: accepts(complete.port), seconds=10, what="the other program's start")
        found = look(complete)["port"]
    assert (found.status, "another program" in found.detail) == ("fail", True)


def test_a_gateway_on_its_port_is_known(gateway, look):
    port = int(gateway.url.rpartition(":")[2])
    assert look(changed(gateway.settings, port=port))["port"].detail == f"the gateway answers at {LOOPBACK}:{port}"


def test_settings_that_are_none_are_the_only_finding(monkeypatch, look, complete):
    monkeypatch.delenv("ARCHREPAIR_STORE_URL", raising=False)
    half = {name: value for name, value in environment_of(complete).items() if name != "ARCHREPAIR_STORE_URL"}
    for name, value in half.items():
        monkeypatch.setenv(name, value)
    (finding,) = examine(CHECKS)
    assert (finding.name, finding.status) == ("settings", "fail")
    assert "ARCHREPAIR_STORE_URL" in finding.detail


def test_a_check_that_breaks_does_not_keep_the_others_from_being_asked(complete, look):
    def breaks(_settings: Settings) -> Finding:
        raise KeyError(f"postgresql://u:{password_of(complete.broker_url or '')}@h/d")

    found = look(complete, checks=(Check("broken", breaks), *CHECKS))
    assert (found["broken"].status, "***" in found["broken"].detail) == ("fail", True)
    assert found["port"].status == "ok"


def test_what_is_a_secret_is_known_by_its_name_and_place():
    environment = {
        "ARCHREPAIR_SECRET_KEY": "one", "AWS_SECRET_ACCESS_KEY": "two", "ARCHREPAIR_METRICS_TOKEN": "three",
        "ARCHREPAIR_DATABASE_URL": "postgresql://user:f%40ur@host/db", "BROKER": "redis://:[five@host", "HOME": "/root",
        "OTHER_URL": "postgresql://host/db?sslmode=require&password=s%20x",
    }  # fmt: skip
    found = secrets_of(environment)
    assert set(found) == {"f%40ur", "f@ur", "one", "two", "three", "[five", "s%20x", "s x"}
    assert sorted(map(len, found), reverse=True) == [len(secret) for secret in found], "a longer one may hold a shorter"


def test_the_command_ends_with_0_when_all_is_well(complete, monkeypatch, capsys):
    for name, value in environment_of(complete).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(CHECKS, [])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert ({line[:4] for line in lines}, len(lines)) == ({"ok  "}, 1 + len(CHECKS))


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_the_command_ends_with_1_when_something_failed_and_tells_programs_which(complete):
    broken = changed(complete, broker_url=f"redis://:{WRONG}@{LOOPBACK}:{free_port()}/0")
    command = [sys.executable, "-m", "app.doctor", "--json"]
    done = subprocess.run(command, env={**os.environ, **environment_of(broken)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr, WRONG in done.stdout) == (1, "", False)
    told = json.loads(done.stdout)
    assert (told["object"], told["status"]) == ("checkup", "fail")
    assert [finding["name"] for finding in told["checks"] if finding["status"] == "fail"] == ["broker"]


def test_an_unknown_option_is_named():
    with pytest.raises(SystemExit, match="--jsno"):
        main(CHECKS, ["--jsno"])


def test_the_worst_finding_is_that_of_the_whole():
    assert worst([]) == "ok"
    assert worst([Finding("a", "warn", ""), fail("", "")]) == "fail"
