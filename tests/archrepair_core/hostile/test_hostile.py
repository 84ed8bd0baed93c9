"""Every hostile archive through the gate, and what passes it through a real engine: none runs, none ends a worker."""

import os
import socket
from collections.abc import Iterator

import pytest

from archrepair_core.errors import ModelError
from archrepair_core.ingest.inspect import inspect_archive
from archrepair_core.sandbox.sandbox import missing_layers
from tests.archrepair_core.hostile.archives import Canary, archive, records
from tests.archrepair_core.hostile.jobs import run_as_job
from tests.archrepair_core.hostile.kinds import ENDED_BY_THE_ENGINE, REFUSED, REFUSED_BY_THE_GATE
from tests.archrepair_core.hostile.table import PAGE, corpus_list, documented_list
from worker.limits import EngineLimits

pytestmark = pytest.mark.filterwarnings("ignore")

# Each costs an engine its start, so the fast suite runs the one that is only seen after loading.
FAST = ("aten::resize_ behind a method of that name",)
ENGINE_SECONDS = 180.0


@pytest.fixture
def canary(tmp_path) -> Iterator[Canary]:
    """Fails the test when its file was made or its port was called."""
    file = tmp_path / "canary"
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Canary(str(file), server.getsockname()[1])
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not file.exists()


def test_the_archive_all_others_derive_from_is_accepted(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(archive(records()))
    assert inspect_archive(path).num_parameters == 64 * 4 + 64 * 64


@pytest.mark.parametrize("kind", REFUSED_BY_THE_GATE)
def test_the_gate_refuses_it_and_says_what_and_where(kind, canary, tmp_path):
    build, code, says = REFUSED_BY_THE_GATE[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(build(canary))
    with pytest.raises(ModelError) as caught:
        inspect_archive(path)
    assert caught.value.code == f"model.{code}"
    assert says in caught.value.detail
    assert caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["model.pt"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in ENDED_BY_THE_ENGINE]
)
@pytest.mark.skipif(bool(missing_layers()), reason=f"this machine has no sandbox: {missing_layers()}")
def test_what_passes_the_gate_ends_in_the_engine_and_says_why(kind, canary, tmp_path):
    build, code, says = ENDED_BY_THE_ENGINE[kind]
    seconds = 12.0 if code == "job.max_runtime_exceeded" else ENGINE_SECONDS
    limits = EngineLimits(sandbox="required", max_runtime_seconds=seconds, data_bytes=4 << 30, grace_seconds=0.5)
    ending = run_as_job(build(canary), tmp_path / "scratch", limits)
    assert ending.code == code, ending.log[-3000:]
    assert says in ending.problem.get("detail", "")
    assert code == "succeeded" or ending.problem["hint"]


def test_the_security_page_lists_the_corpus():
    assert documented_list(PAGE.read_text("utf-8")) == corpus_list(), (
        "python -m tests.archrepair_core.hostile.table --write"
    )


def test_no_kind_hides_another():
    assert not REFUSED_BY_THE_GATE.keys() & ENDED_BY_THE_ENGINE.keys()
    assert len(REFUSED_BY_THE_GATE) == sum(map(len, REFUSED.values()))
