"""Values of a report by JSON Pointer (RFC 6901), and how each kind of number is written, the same in every view."""

from collections.abc import Callable, Mapping
from typing import Any

MISSING = "–"
CONTROL_NAMES = {"weights": "its weights alone", "random_block": "a random block"}


def value_at(report: Mapping[str, Any], pointer: str) -> Any:
    """The value a pointer like `/test/per_class/3/before` names; None where the report has nothing there."""
    value: Any = report
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def escaped(key: str) -> str:
    """A key as one part of a pointer: names of layers may hold anything."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


STYLES: Mapping[str, Callable[[Any], str]] = {
    "percent": lambda value: f"{100 * value:.2f} %",
    "points": lambda value: f"{100 * value:+.2f}".replace("-", "−"),
    "tenths": lambda value: f"{100 * value:.1f}",
    "plus_tenths": lambda value: f"{100 * value:+.1f}".replace("-", "−"),
    "p": _p_value,
    "count": lambda value: f"{value:,}",
    "label": str,
    "plus": lambda value: f"{value:+,}".replace("-", "−"),
    "number": lambda value: f"{value:.4g}".replace("-", "−") if abs(value) >= 1e-4 or value == 0 else f"{value:.2e}",
    "ratio": lambda value: f"{value:.3f} ×",
    "seconds": lambda value: f"{value:,.1f} s",
}


def show(value: float | None, style: str) -> str:
    """The number as people read it; a dash where there is none."""
    return MISSING if value is None else STYLES[style](value)
