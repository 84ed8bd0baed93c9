"""`python -m worker.doctor`: what only a worker has, well and broken. What it shares is tested with the gateway's."""

import stat
import sys
from pathlib import Path

import obstore
import pytest

from app.shared.checkup import examine
from app.shared.storage import open_store
from archrepair_core.sandbox.sandbox import missing_layers
from tests.servers import environment_of
from worker import doctor
from worker.doctor import CHECKS, check_torch

OWN = tuple(check for check in CHECKS if check.name in ("queues", "sandbox", "scratch disk")
            or check.name.startswith("dataset"))  # fmt: skip


@pytest.fixture
def look(monkeypatch):
    """Findings of the worker's own checks by name, without torch, which costs seconds."""

    def examined(settings, **variables):
        with monkeypatch.context() as patch:
            for name, value in (environment_of(settings) | variables).items():
                patch.setenv(name, value)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            return {finding.name: finding for finding in examine(OWN)}

    return examined


def test_a_worker_that_is_well_is_told_so(settings, look):
    if missing_layers():
        pytest.skip("this kernel has no sandbox")
    found = look(settings)
    assert {name: finding.detail for name, finding in found.items() if finding.status != "ok"} == {}
    assert found["queues"].detail.startswith("serves cpu on cpu")


def test_the_queue_of_gpus_without_one_is_named(embedded, tmp_path, look):
    settings = embedded.fresh(tmp_path / "state")
    found = look(settings, ARCHREPAIR_QUEUES="gpu")["queues"]
    assert (found.status, "ARCHREPAIR_QUEUES" in found.hint) == ("fail", True)
    unknown = look(settings, ARCHREPAIR_QUEUES="tpu")
    assert (unknown["queues"].status, "tpu" in unknown["queues"].detail) == ("fail", True)
    assert unknown["sandbox"].detail == "not asked"
    limits = look(settings, ARCHREPAIR_ENGINE_OPEN_FILES="-1")["queues"]
    assert (limits.status, "open_files" in limits.detail) == ("fail", True)


def test_directories_that_are_not_there_or_not_read_are_named(embedded, tmp_path, look):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    roots = tuple(str(tmp_path / name) for name in ("there", "gone", "file"))
    found = look(embedded.fresh(tmp_path / "state", dataset_roots=roots))["dataset roots"]
    assert found.status == "fail"
    assert roots[1] in found.detail
    assert roots[2] in found.detail
    assert roots[0] not in found.detail


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_buckets_that_cannot_be_read_are_named(stack, tmp_path, look):
    settings = stack.fresh(tmp_path / "state")
    obstore.put(open_store(settings.store_url), "data.npz", b"x")
    well = settings.model_copy(update={"dataset_buckets": (settings.store_url,)})
    assert look(well)["dataset buckets"].status == "ok"
    broken = settings.model_copy(update={"dataset_buckets": ("s3://no-such-bucket-of-ours/x", "ftp://host/x")})
    found = look(broken)["dataset buckets"]
    assert (found.status, "ftp://host/x" in found.detail) == ("warn", True)


def test_an_open_sandbox_is_named(embedded, tmp_path, look, monkeypatch):
    settings = embedded.fresh(tmp_path / "state")
    assert look(settings, ARCHREPAIR_ENGINE_SANDBOX="off")["sandbox"].status == "warn"


@pytest.fixture
def broken_python(tmp_path: Path, monkeypatch):
    """A Python in which `import torch` does what the lines say."""

    def installed(*lines: str) -> None:
        (tmp_path / "torch.py").write_text("\n".join(lines))
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(doctor.sys, "executable", str(python))

    return installed


def test_a_torch_that_does_not_load_is_named_in_its_own_words(broken_python, embedded, tmp_path):
    broken_python("raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = check_torch(embedded.fresh(tmp_path / "state"))
    assert (found.status, "libcudart.so.13" in found.detail) == ("fail", True)
    assert "archrepair[engine]" in found.hint
