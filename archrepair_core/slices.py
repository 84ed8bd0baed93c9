"""Slices: what was measured on the test set as a whole, for each value of a column of its metadata.

Every slice is a test of its own, so p-values are adjusted over all slices of all columns (Holm).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from archrepair_core.data.images import LabelledImages
from archrepair_core.statistics import (
    below_rest_p,
    holm,
    paired_difference_interval,
    wilson_interval,
    worsening_p,
)

# Of a column, the values most inputs have; a table of more is not read.
MAX_SLICES = 50


def measure_slices(
    images: LabelledImages,
    right_before: np.ndarray | None,
    right_after: np.ndarray,
    *,
    columns: Sequence[str],
    min_n: int,
) -> list[dict[str, Any]]:
    """Per column its slices, the largest first, as JSON data; `right_*` are bool [N], before is None for one model.

    `p_below_rest` is of the slice being answered worse than all other inputs, `p_worse` of it having got worse.
    """
    found = [_column_slices(images, name, right_before, right_after, min_n=min_n) for name in columns]
    rows = [row for column in found for row in column["slices"]]
    for key in ("p_below_rest", "p_worse"):
        tested = [row for row in rows if row[key] is not None]
        for row, p in zip(tested, holm([row[key] for row in tested]), strict=True):
            row[key] = p
    return found


def _column_slices(
    images: LabelledImages, name: str, right_before: np.ndarray | None, right_after: np.ndarray, *, min_n: int
) -> dict[str, Any]:
    column = images.columns[name]
    counts = np.bincount(column.codes, minlength=len(column.values))
    largest = np.argsort(-counts, kind="stable")
    shown = [int(code) for code in largest if counts[code] >= min_n][:MAX_SLICES]
    hidden = [int(code) for code in largest if counts[code] and code not in shown]
    slices = [
        {"value": column.values[code], **_describe(column.codes == code, right_before, right_after)} for code in shown
    ]
    return {
        "column": name,
        "slices": slices,
        "not_shown": {"values": len(hidden), "n": int(sum(counts[code] for code in hidden))},
    }


def _describe(inside: np.ndarray, right_before: np.ndarray | None, right_after: np.ndarray) -> dict[str, Any]:
    n, right = int(inside.sum()), int(right_after[inside].sum())
    whole = float(right_after.mean())
    compared = _compare(right_before[inside], right_after[inside]) if right_before is not None else _NOT_COMPARED
    return {
        "n": n,
        "before": float(right_before[inside].mean()) if right_before is not None else None,
        "after": right / n,
        "after_ci95": wilson_interval(right, n),
        "from_whole": right / n - whole,
        "p_below_rest": below_rest_p(right, n, all_right=int(right_after.sum()), all_n=len(right_after)),
        **compared,
    }


_NOT_COMPARED: dict[str, Any] = dict.fromkeys(("change", "change_ci95", "fixed", "broken", "broken_ci95", "p_worse"))


def _compare(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    n, fixed, broken = len(after), int((~before & after).sum()), int((before & ~after).sum())
    return {
        "change": (fixed - broken) / n,
        "change_ci95": paired_difference_interval(fixed, broken, n),
        "fixed": fixed,
        "broken": broken,
        "broken_ci95": wilson_interval(broken, n),
        "p_worse": float(worsening_p(np.array(fixed), np.array(broken))),
    }
