"""Every test that docs/security.md names is there: as a function, and for pytest."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/security.md").read_text()
NODE_ID = re.compile(r"`(?:tests/)?([\w/]+\.py)::(\w+)`")
NAMED = sorted(set(NODE_ID.findall(PAGE)))
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_every_test_that_is_named_is_there():
    names: dict[str, set[str]] = {}
    for path in {path for path, _ in NAMED}:
        tree = ast.parse((TESTS / path).read_text())
        names[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert [f"{path}::{name}" for path, name in NAMED if name not in names[path]] == []
    assert [name for _, name in NAMED if not name.startswith("test_")] == []


def test_every_threat_has_what_stops_it_and_a_test_that_shows_it():
    threats = PAGE.partition("## Threats\n")[2].partition("\n## ")[0]
    rows = [row for row in ROW.findall(threats) if row[0] not in ("somebody could …", "---")]
    assert len(rows) > 50
    for threat, stops, shown in rows:
        assert stops.strip(), threat
        assert NODE_ID.findall(shown), f"no test shows: {threat}"


def test_files_of_tests_that_are_named_are_there():
    for path in re.findall(r"`(?:tests/)?([\w/]+\.py)`", PAGE):
        assert (TESTS / path).is_file() or (TESTS.parent / path).is_file() or list(TESTS.rglob(path)) or list(
            TESTS.parent.glob(f"archrepair_core/*/{path}")), path  # fmt: skip


@pytest.mark.slow
def test_pytest_collects_every_test_that_is_named():
    ids = [f"tests/{path}::{name}" for path, name in NAMED]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *ids], cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    for path, name in NAMED:
        assert f"{path}::{name}" in done.stdout
