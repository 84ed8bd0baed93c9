import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from archrepair_core.__main__ import ERROR, NOT_BETTER, PASSED, check_asked, exit_code, main, named_path, read_asked
from archrepair_core.errors import SpecError
from archrepair_core.sandbox.sandbox import missing_layers
from tests.archrepair_core.hostile.archives import archive, records
from tests.archrepair_core.hostile.jobs import write_images


@pytest.fixture
def spec_file(tmp_path):
    def write(content):
        path = tmp_path / "spec.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_without_a_spec_the_given_files_are_the_splits_of_their_name(tmp_path):
    spec = check_asked({}, {"repair": tmp_path, "test": tmp_path, "other": tmp_path})
    assert (spec.datasets.repair, spec.datasets.test, spec.datasets.replay) == ("upload:repair", "upload:test", None)


def test_a_reference_of_the_spec_wins_over_the_name_of_a_file(spec_file, tmp_path):
    path = spec_file({"datasets": {"test": "upload:other"}, "seed": 3})
    spec = check_asked(read_asked(path), {"repair": tmp_path, "other": tmp_path})
    assert (spec.datasets.repair, spec.datasets.test, spec.seed) == ("upload:repair", "upload:other", 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ({"sede": 3}, "/sede"),
        ({"datasets": {"test": "upload:missing"}}, "'upload:missing'"),
        ({"gates": ["test.accuracy > bevore"]}, "bevore"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong_in_it(spec_file, tmp_path, content, said):
    with pytest.raises(SpecError) as caught:
        check_asked(read_asked(spec_file(content)), {"repair": tmp_path})
    assert said in caught.value.detail
    assert caught.value.hint


def test_a_dataset_option_needs_a_name_and_a_path():
    assert named_path("test=a=b.npz")[0] == "test"
    with pytest.raises(SpecError, match="NAME=PATH"):
        named_path("test.npz")


def test_a_missing_file_is_an_error_with_a_hint(tmp_path, capsys):
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "data.npz")]) == ERROR
    said = capsys.readouterr().err
    assert "data.npz" in said or "model.pt" in said
    assert "hint: " in said


@pytest.mark.parametrize(
    ("outcome", "verdict", "code"),
    [
        ("repaired", "pass", PASSED),
        ("repaired", "inconclusive", NOT_BETTER),
        ("repaired", "fail", NOT_BETTER),
        ("no_improvement", "not_evaluated", NOT_BETTER),
        ("localized", "not_evaluated", PASSED),
        ("evaluated", "not_evaluated", PASSED),
        ("evaluated", "inconclusive", NOT_BETTER),
    ],
)
def test_the_exit_code_is_zero_only_for_what_may_be_deployed(outcome, verdict, code):
    assert exit_code({"outcome": outcome}, verdict) == code


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_layers()), reason=f"this machine has no sandbox: {missing_layers()}")
def test_the_program_closes_itself_off_and_still_repairs(tmp_path):
    (tmp_path / "model.pt").write_bytes(archive(records()))
    write_images(tmp_path / "data.npz")
    (tmp_path / "spec.json").write_text(json.dumps({"repair": {"budget_seconds": 1}}))
    command = [sys.executable, "-m", "archrepair_core", "model.pt", "data.npz", "--spec", "spec.json"]
    environment = {**os.environ, "ARCHREPAIR_ENGINE_SANDBOX": "required", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (PASSED, NOT_BETTER), done.stderr
    assert "files: closed" in done.stderr
    assert "system calls: closed" in done.stderr
    left = {path.name for path in (tmp_path / "archrepair-out").iterdir()}
    assert {"report.json", "predictions.npz"} <= left
    assert not [name for name in left if name.startswith("work-")]


def test_an_unknown_sandbox_is_an_error_before_anything_is_read(tmp_path, capsys):
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "data.npz")], sandbox="bogus") == ERROR
    assert "required, best_effort, off" in capsys.readouterr().err
