import pytest

from worker.scratch import scratch_directory, sweep_scratch


def test_a_scratch_directory_is_private_and_gone_afterwards(tmp_path):
    with scratch_directory(tmp_path / "scratch") as scratch:
        (scratch.work / "file").write_text("x")
        assert scratch.out.parent.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_scratch_directory_is_gone_after_an_error_too(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_directory(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path):
    left = tmp_path / "job-left"
    (left / "work").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    with scratch_directory(tmp_path) as scratch:
        assert sweep_scratch(tmp_path) == 1
        assert scratch.work.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_sweep_before_the_first_job_finds_nothing(tmp_path):
    assert sweep_scratch(tmp_path / "never-made") == 0
