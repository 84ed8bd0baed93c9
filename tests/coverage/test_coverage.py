"""Every model of the registry comes back whole: the fast ones by default, all of them in `make test-models`.

With ARCHREPAIR_COVERAGE_ROWS=FILE rows are appended to FILE, and those it has of this very code are not measured again.
"""

import os
from pathlib import Path

import pytest
import torch

from tests.coverage.entry import Kind
from tests.coverage.measure import TIMEOUT_SECONDS, Row, append_row, code_digest, measure, read_rows
from tests.coverage.registry import ENTRIES


def _cases() -> list:
    return [
        pytest.param(name, kind, marks=() if kind in entry.fast else pytest.mark.models, id=f"{name}-{kind}")
        for name, entry in ENTRIES.items()
        for kind in entry.kinds
    ]


@pytest.fixture(scope="session")
def rows_path() -> Path | None:
    path = os.environ.get("ARCHREPAIR_COVERAGE_ROWS")
    return Path(path) if path else None


@pytest.fixture(scope="session")
def known_rows(rows_path: Path | None) -> dict[tuple[str, str], Row]:
    rows = read_rows(rows_path) if rows_path else ()
    code = code_digest()
    return {(row.name, row.kind): row for row in rows if (row.torch_version, row.code) == (torch.__version__, code)}


@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
@pytest.mark.parametrize(("name", "kind"), _cases())
def test_model_comes_back_whole(name: str, kind: Kind, rows_path: Path | None, known_rows):
    row = known_rows.get((name, kind))
    if row is None:
        row = measure(name, kind)
        if rows_path:
            append_row(rows_path, row)
    excused = ENTRIES[name].excused(kind)
    failures = {column: why for column, why in row.failures().items() if column not in excused}
    assert not failures, failures
