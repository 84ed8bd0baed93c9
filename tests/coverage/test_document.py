import dataclasses

import pytest

from tests.coverage.check import COLUMNS
from tests.coverage.document import page
from tests.coverage.measure import Row, append_row, read_rows


@pytest.fixture
def row() -> Row:
    cells = {column: {"passed": True, "detail": "", "seconds": 0.1} for column in COLUMNS}
    cells["blocks"]["detail"] = "8 / 4"
    return Row(
        name="torchvision/resnet18",
        kind="scripted",
        cells=cells,
        num_parameters=11_689_512,
        input_shapes=[[2, 3, 64, 64]],
        seconds=5.0,
        peak_megabytes=800,
        torch_version="2.14.1",
        code="abc",
        measured_at="2026-11-22",
    )


def failing(row: Row, column: str, why: str) -> Row:
    return dataclasses.replace(row, cells=row.cells | {column: {"passed": False, "detail": why, "seconds": 0.1}})


def test_a_row_that_holds_is_whole_and_what_was_not_measured_says_so(row):
    text = page([row])
    assert "| `torchvision/resnet18` | 11.7 | 3×64×64 | whole | not measured | 8 / 4 |" in text
    assert "| torchvision resnet | 1 | 1/1 | – |" in text
    assert "Measured: 1 of " in text
    assert "## Failing\n\nNothing.\n" in text


def test_a_failing_column_is_counted_and_its_reason_told(row):
    text = page([failing(row, "outputs", "differs by 0.3")])
    assert "* `torchvision/resnet18` scripted, `outputs`: differs by 0.3" in text
    assert "`outputs` fails" in text
    assert "| torchvision resnet | 1 | 0/1 |" in text


def test_an_accepted_failure_is_listed_apart_with_its_reason(row):
    known = failing(dataclasses.replace(row, name="tied_weights", kind="traced"), "blocks", "2 of 3 as in eager")
    text = page([known])
    assert "## Failing\n\nNothing.\n" in text
    assert "Measured: 2 of 3 as in eager" in text


def test_of_rows_for_one_archive_the_last_counts(row):
    text = page([failing(row, "outputs", "differs by 0.3"), row])
    assert "differs by 0.3" not in text


def test_rows_are_read_back_and_a_half_written_one_is_passed_over(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row)
    path.write_text(path.read_text() + '{"name": "torchvi')
    assert list(read_rows(path)) == [row]
