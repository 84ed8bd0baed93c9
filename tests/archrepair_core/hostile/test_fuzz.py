"""Damaged archives without end: the gate answers with a ModelError or accepts, and what it accepts crashes no engine.

`make test-slow` tries many more. Hypothesis chooses the numbers, the mutations know the grammar of each part; a
coverage-guided fuzzer of native code has nothing to see in a gate of pure Python, and upstream's loader is not built
for one.
"""

import contextlib
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archrepair_core.errors import ModelError
from archrepair_core.ingest.inspect import inspect_archive
from archrepair_core.sandbox.sandbox import missing_layers
from tests.archrepair_core.hostile.archives import archive
from tests.archrepair_core.hostile.mutations import damaged, mutated
from tests.archrepair_core.hostile.seeds import seed_archives
from worker.engine_events import Progress, Ready, Result
from worker.engine_process import EngineProcess
from worker.limits import EngineLimits

pytestmark = pytest.mark.filterwarnings("ignore")

TARGET = (sys.executable, "-P", "-m", "tests.archrepair_core.hostile.fuzz_target")
ROOT = Path(__file__).parents[3]
# One small archive takes milliseconds; a loop that never ends is left to the time limit of the job.
SECONDS_PER_ARCHIVE = 30.0
NUMBERS = st.integers(0, 2**48)
MANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def seeds():
    return seed_archives()


def is_accepted(content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        inspect_archive(path)
        return True
    return False


def test_the_archives_to_damage_are_accepted(seeds, tmp_path):
    assert all(is_accepted(archive(records), tmp_path / "model.pt") for records in seeds)


@given(number=NUMBERS)
@settings(MANY, max_examples=200)
def test_the_gate_answers_damaged_bytes_with_a_model_error(seeds, tmp_path, number):
    content = damaged(archive(seeds[number % len(seeds)]), random.Random(number))
    is_accepted(content, tmp_path / "model.pt")


@pytest.mark.slow
@given(number=NUMBERS)
@settings(MANY, max_examples=250)
def test_the_gate_answers_damage_behind_right_checksums_with_a_model_error(seeds, tmp_path, number):
    is_accepted(mutated(seeds[number % len(seeds)], number), tmp_path / "model.pt")


@pytest.mark.slow
@pytest.mark.timeout(900)
@given(number=NUMBERS)
@settings(MANY, max_examples=20_000)
def test_the_gate_answers_very_much_damage_with_a_model_error(seeds, tmp_path, number):
    is_accepted(mutated(seeds[number % len(seeds)], number), tmp_path / "model.pt")


@pytest.mark.skipif(bool(missing_layers()), reason=f"this machine has no sandbox: {missing_layers()}")
@pytest.mark.parametrize(
    "numbers", [range(60), pytest.param(range(60, 6000), marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_no_damaged_archive_crashes_the_loader_or_what_rebuilds_it(numbers, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    endings = dict(endings_of(numbers, tmp_path))
    assert set(endings) == set(numbers)
    assert {ending for ending in endings.values() if ending not in ("agrees", "stopped")} <= {"refused"}
    assert "agrees" in endings.values()
    assert list(endings.values()).count("stopped") <= len(endings) // 100, "loops without end should be rare"


def endings_of(numbers: range, scratch_root: Path) -> Iterator[tuple[int, str]]:
    """How each archive ended; after one that had to be stopped, a new process goes on with the next."""
    limits = EngineLimits(sandbox="required", data_bytes=4 << 30)
    first = numbers.start
    while first < numbers.stop:
        engine = EngineProcess(limits, scratch_root=scratch_root, command=TARGET)
        try:
            endings = list(_watch(engine, first, numbers.stop))
        finally:
            engine.close()
        assert endings, engine.log.content().decode()
        yield from endings
        first = endings[-1][0] + 1


def _watch(engine: EngineProcess, first: int, stop: int) -> Iterator[tuple[int, str]]:
    number, since = first - 1, time.monotonic()
    while not engine.exited() and time.monotonic() - since < SECONDS_PER_ARCHIVE:
        for event in engine.pump(0.1):
            since = time.monotonic()
            match event:
                case Ready():
                    engine.send({"first": first, "stop": stop})
                case Progress():
                    number = event.step
                    if event.message:
                        yield number, event.message
                case Result():
                    return
    yield number, f"crashed with {engine.kill()}" if engine.exited() else "stopped"
