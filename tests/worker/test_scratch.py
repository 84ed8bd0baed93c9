import os
import shutil

import pytest

from worker.scratch import KEPT_SECONDS, begin_job, keep_checkpoints, scratch_directory, sweep_scratch


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


def leave_behind(root, job_id, **files):
    """What is left of an attempt whose worker was killed: no lock holds its directory."""
    with scratch_directory(root) as scratch:
        begin_job(scratch, job_id)
        (scratch.work / "checkpoints").mkdir(exist_ok=True)
        for name, text in files.items():
            (scratch.work / "checkpoints" / name).write_text(text)
        shutil.copytree(scratch.work.parent, root / "job-killed", symlinks=True)


@pytest.mark.parametrize("swept_first", [False, True])
def test_the_next_attempt_finds_what_a_killed_one_left_and_another_job_does_not(tmp_path, swept_first):
    leave_behind(tmp_path, "job_1", state="half")
    if swept_first:
        assert sweep_scratch(tmp_path) == 1
    with scratch_directory(tmp_path) as other, scratch_directory(tmp_path) as again:
        begin_job(other, "job_2")
        assert list(other.work.iterdir()) == []
        begin_job(again, "job_1")
        assert (again.work / "checkpoints" / "state").read_text() == "half"
    with scratch_directory(tmp_path) as third:
        begin_job(third, "job_1")
        assert list(third.work.iterdir()) == [], "an attempt that ended leaves nothing"


def test_an_attempt_that_is_given_back_leaves_its_checkpoints_and_no_links(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("ours")
    with scratch_directory(tmp_path / "root") as scratch:
        begin_job(scratch, "job_1")
        (scratch.work / "checkpoints").mkdir()
        (scratch.work / "checkpoints" / "state").write_text("half")
        (scratch.work / "checkpoints" / "link").symlink_to(secret)
        keep_checkpoints(scratch)
    with scratch_directory(tmp_path / "root") as scratch:
        begin_job(scratch, "job_1")
        assert [path.name for path in (scratch.work / "checkpoints").iterdir()] == ["state"]


def test_a_linked_checkpoint_folder_is_not_kept(tmp_path):
    with scratch_directory(tmp_path / "root") as scratch:
        begin_job(scratch, "job_1")
        (scratch.work / "checkpoints").symlink_to(tmp_path)
        keep_checkpoints(scratch)
        assert not (tmp_path / "root" / "kept").exists()


def test_what_nobody_came_for_is_removed_after_a_day(tmp_path):
    leave_behind(tmp_path, "job_1", state="half")
    sweep_scratch(tmp_path)
    kept = tmp_path / "kept" / "job_1"
    old = kept.stat().st_mtime - KEPT_SECONDS - 1
    os.utime(kept, (old, old))
    sweep_scratch(tmp_path)
    assert not kept.exists()
