"""Reading and fetching Fashion-MNIST, without it."""

import gzip

import numpy as np
import pytest

from benchmarks import fashion


def test_an_idx_file_is_read_in_its_shape(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + bytes([0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3]) + bytes(range(6))))
    assert fashion.read_idx(path).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


def test_another_type_of_numbers_is_refused(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 1]) + bytes(4)))
    with pytest.raises(ValueError, match="no IDX file"):
        fashion.read_idx(path)


def test_a_machine_without_apt_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "INSIDE", "nowhere/of/that/name")
    monkeypatch.setattr(fashion, "OUT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no apt-get.*put the four"):
        fashion.load_fashion("train")
    assert not list(tmp_path.iterdir())


def test_a_failed_download_shows_what_apt_said(tmp_path, monkeypatch):
    for program in ("apt-get", "dpkg-deb"):
        (tmp_path / program).write_text("#!/bin/sh\necho no such package >&2\nexit 100\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr(fashion, "INSIDE", "nowhere/of/that/name")
    monkeypatch.setattr(fashion, "OUT", tmp_path / "out")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SystemExit, match="no such package"):
        fashion.load_fashion("train")


def test_a_package_is_unpacked_where_it_is_looked_for(tmp_path, monkeypatch):
    content = "pack/usr/share/x"
    (tmp_path / "apt-get").write_text("#!/bin/sh\n: > package.deb\n")
    (tmp_path / "dpkg-deb").write_text(f'#!/bin/sh\nmkdir -p "$3/{content}" && echo "$2" > "$3/{content}/files"\n')
    for program in ("apt-get", "dpkg-deb"):
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr(fashion, "INSIDE", content)
    monkeypatch.setattr(fashion, "OUT", tmp_path / "out")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert (fashion._find_files() / "files").read_text().strip().endswith("package.deb")


def test_pictures_turn_about_their_middle():
    images = np.zeros((1, 9, 9), dtype=np.uint8)
    images[0, 4, 4], images[0, 4, 6] = 200, 100
    turned = fashion.turned(images, 90)
    assert turned[0, 4, 4] == 200
    assert turned[0, 4, 6] == 0
    assert 100 in (turned[0, 2, 4], turned[0, 6, 4])
    assert (fashion.turned(images, 0) == images).all()
