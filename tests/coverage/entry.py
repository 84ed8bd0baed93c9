"""What a model must tell to be covered: its name, how it is built, what it is called with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Kind = Literal["scripted", "traced"]
KINDS: tuple[Kind, ...] = ("scripted", "traced")


@dataclass(frozen=True)
class Entry:
    """A model of the registry; `inputs(n)` are the arguments of one call on n items.

    `fast` names the kinds that run in the default suite, `exceptions` the columns that fail: (kind, column, why).
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    kinds: tuple[Kind, ...] = KINDS
    fast: tuple[Kind, ...] = ()
    batch_sizes: tuple[int, int] = (1, 2)
    # Relative to the largest magnitude of the answer, in eval mode.
    tolerance: float = 1e-5
    # For nets whose values matter (thresholds, tables): only batch-norm statistics are drawn then.
    keeps_values: bool = False
    exceptions: tuple[tuple[Kind, str, str], ...] = ()

    def excused(self, kind: Kind) -> dict[str, str]:
        """The columns that are known to fail for this kind, and why."""
        return {column: why for excused, column, why in self.exceptions if excused == kind}
