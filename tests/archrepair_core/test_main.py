import json

import pytest

from archrepair_core.__main__ import ERROR, NOT_BETTER, PASSED, exit_code, main, named_path, read_spec
from archrepair_core.errors import SpecError


@pytest.fixture
def spec_file(tmp_path):
    def write(content):
        path = tmp_path / "spec.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_without_a_spec_the_given_files_are_the_splits_of_their_name(tmp_path):
    spec = read_spec(None, {"repair": tmp_path, "test": tmp_path, "other": tmp_path})
    assert (spec.datasets.repair, spec.datasets.test, spec.datasets.replay) == ("upload:repair", "upload:test", None)


def test_a_reference_of_the_spec_wins_over_the_name_of_a_file(spec_file, tmp_path):
    path = spec_file({"datasets": {"test": "upload:other"}, "seed": 3})
    spec = read_spec(path, {"repair": tmp_path, "other": tmp_path})
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
        read_spec(spec_file(content), {"repair": tmp_path})
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
    ],
)
def test_the_exit_code_is_zero_only_for_what_may_be_deployed(outcome, verdict, code):
    assert exit_code({"outcome": outcome}, verdict) == code
