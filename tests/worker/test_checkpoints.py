"""Checkpoints on their way from one machine to another: a second scratch directory is a second machine here."""

import os
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from sqlalchemy import update

from app.shared.checkpoints import free_checkpoints
from app.shared.db import db_now
from app.shared.jobs import request_cancel
from app.shared.reaping import reap_expired
from app.shared.tables import Job
from tests.servers import stored_keys
from worker import checkpoints
from worker.checkpoints import UnfitCheckpoint, fingerprint, pack_checkpoints, unpack_checkpoints
from worker.engine_process import EngineProcess
from worker.supervisor import run_next_job
from worker.warm_engine import WarmEngine

DOUBLE = (sys.executable, "-S", "-E", str(Path(__file__).with_name("engine_double.py")))
MIB = 1 << 20


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.fixture
def other_machine(service, limits, tmp_path):
    """A worker with a scratch directory of its own on the same service."""

    def start():
        return EngineProcess(limits, scratch_root=tmp_path / "other-scratch", command=DOUBLE)

    engines = WarmEngine(start)
    yield replace(service.bench, engines=engines, owner="worker-2", stopping=threading.Event())
    engines.close()


def lose_the_lease(service, job_id):
    with service.bench.sessions.begin() as session:
        session.execute(update(Job).values(lease_until=db_now() - 1, owner="nobody"))
        assert reap_expired(session) == [job_id]


def test_another_machine_goes_on_where_a_lost_one_was(service, other_machine, settings, monkeypatch, eventually):
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.05)
    job_id = service.submit("continue_or_wait")
    thread = in_thread(lambda: run_next_job(service.bench))
    eventually(lambda: service.job(job_id).checkpoint_key)
    lose_the_lease(service, job_id)
    thread.join(10)

    assert run_next_job(other_machine) is True

    assert service.job(job_id).status == "succeeded"
    assert service.artifacts(job_id)["repaired.pt"][1] == b"half done;DATA"
    assert service.causes(job_id) == ["worker_lost", "succeeded"]
    assert len(stored_keys(settings, "checkpoints")) == 1
    free_checkpoints(service.bench.sessions, service.bench.store)
    assert stored_keys(settings, "checkpoints") == []
    assert service.job(job_id).checkpoint_key is None


def test_a_worker_that_goes_takes_its_last_checkpoint_to_the_store(service, other_machine, eventually):
    job_id = service.submit("continue_or_wait")
    thread = in_thread(lambda: run_next_job(service.bench))
    eventually(lambda: service.job(job_id).progress)
    service.bench.stopping.set()
    thread.join(10)
    assert (service.job(job_id).status, service.job(job_id).attempt) == ("queued", 0)

    run_next_job(other_machine)
    assert service.artifacts(job_id)["repaired.pt"][1] == b"half done;DATA"
    assert service.causes(job_id) == ["preempted", "succeeded"]


def test_a_checkpoint_that_is_gone_or_broken_is_no_obstacle(service, other_machine):
    for damage in (None, b"not an archive" * 100):
        job_id = service.submit("succeed")
        key = f"checkpoints/{job_id}/1-x"
        if damage:
            obstore.put(service.bench.store, key, damage)
        with service.bench.sessions.begin() as session:
            session.get_one(Job, job_id).checkpoint_key = key
        while run_next_job(other_machine):
            pass
        assert service.job(job_id).status == "succeeded"


def test_a_worker_that_lost_its_job_leaves_no_checkpoint(service, settings, monkeypatch, eventually):
    """It is frozen between its engine's checkpoint and the store."""
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.05)
    packed, go_on, pack = threading.Event(), threading.Event(), checkpoints.pack_checkpoints

    def freeze(*args, **options):
        answer = pack(*args, **options)
        packed.set()
        go_on.wait(10)
        return answer

    monkeypatch.setattr(checkpoints, "pack_checkpoints", freeze)
    job_id = service.submit("continue_or_wait")
    thread = in_thread(lambda: run_next_job(service.bench))
    assert packed.wait(10)
    with service.bench.sessions.begin() as session:
        session.execute(update(Job).values(owner="worker-2", attempt=2))
    go_on.set()
    thread.join(10)
    assert service.job(job_id).checkpoint_key is None
    assert stored_keys(settings, "checkpoints") == []


def test_a_cancelled_job_takes_no_checkpoint_along(service, settings, eventually):
    job_id = service.submit("continue_or_wait")
    thread = in_thread(lambda: run_next_job(service.bench))
    eventually(lambda: service.job(job_id).progress)
    with service.bench.sessions.begin() as session:
        request_cancel(session, session.get_one(Job, job_id), keep_best=False)
    thread.join(10)
    assert stored_keys(settings, "checkpoints") == []


@pytest.fixture
def work(tmp_path):
    path = tmp_path / "work"
    (path / "checkpoints").mkdir(parents=True)
    return path


def test_only_plain_files_are_taken_and_come_back_as_they_were(work, tmp_path):
    found = work / "checkpoints"
    (found / "state.safetensors").write_bytes(b"weights")
    (found / "state.partial").write_bytes(b"half")
    (found / ".hidden").write_bytes(b"x")
    (found / "directory").mkdir()
    (found / "link").symlink_to("/etc/passwd")
    os.mkfifo(found / "pipe")
    assert pack_checkpoints(work, tmp_path / "archive", max_bytes=MIB)
    (tmp_path / "next").mkdir()
    unpack_checkpoints(tmp_path / "archive", tmp_path / "next", max_bytes=MIB)
    taken = {path.name: path.read_bytes() for path in (tmp_path / "next" / "checkpoints").iterdir()}
    assert taken == {"state.safetensors": b"weights"}


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("ours")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoints").symlink_to(tmp_path / "secrets")
    assert fingerprint(tmp_path / "work") == ()
    assert not pack_checkpoints(tmp_path / "work", tmp_path / "archive", max_bytes=MIB)


def test_too_much_is_not_taken(work, tmp_path):
    (work / "checkpoints" / "large").write_bytes(bytes(MIB + 1))
    with pytest.raises(UnfitCheckpoint, match="more than 1,048,576 bytes"):
        pack_checkpoints(work, tmp_path / "archive", max_bytes=MIB)


@pytest.mark.parametrize("name", ["../outside", "/etc/x", "a/b", ".hidden"])
def test_an_archive_with_other_names_puts_nothing_anywhere(tmp_path, name):
    with tarfile.open(tmp_path / "archive", "w") as archive:
        for each in ("fine", name):
            archive.addfile(tarfile.TarInfo(each))
    (tmp_path / "work").mkdir()
    with pytest.raises(UnfitCheckpoint):
        unpack_checkpoints(tmp_path / "archive", tmp_path / "work", max_bytes=MIB)
    assert list((tmp_path / "work").iterdir()) == []


def test_an_archive_with_a_link_puts_nothing_anywhere(tmp_path):
    with tarfile.open(tmp_path / "archive", "w") as archive:
        link = tarfile.TarInfo("state")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "work").mkdir()
    with pytest.raises(UnfitCheckpoint):
        unpack_checkpoints(tmp_path / "archive", tmp_path / "work", max_bytes=MIB)
    assert list((tmp_path / "work").iterdir()) == []
