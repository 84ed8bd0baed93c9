"""One file per repair method; `METHODS` is the table the spec's `repair.method` looks up."""

from collections.abc import Sequence
from typing import Protocol

from archrepair_core.repairers.align import align_block
from archrepair_core.repairers.apricot import adapt_weights
from archrepair_core.repairers.arachne import search_weights
from archrepair_core.repairers.archrepair import search_cell
from archrepair_core.repairers.auto import climb_ladder
from archrepair_core.repairers.block_search import search_block
from archrepair_core.repairers.bn import re_estimate_batch_norm
from archrepair_core.repairers.certify import repair_last_layer
from archrepair_core.repairers.deeprepair import train_on_styles
from archrepair_core.repairers.fewshot_mix import train_on_mixtures
from archrepair_core.repairers.mode import select_inputs
from archrepair_core.repairers.sensei import train_on_worst
from archrepair_core.repairers.weights import fine_tune
from archrepair_core.search.trials import Arena, Trial


class Repairer(Protocol):
    """Every method: from the arena and the suspects, most suspicious first, to its trials, the chosen one first."""

    def __call__(
        self, arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
    ) -> list[Trial]: ...


def _bn(arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None) -> list[Trial]:
    trial = re_estimate_batch_norm(arena)
    return [trial] if trial else []


def _block_search(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    return search_block(arena, suspects, deadline=deadline, epochs=epochs)


METHODS: dict[str, Repairer] = {
    "auto": climb_ladder,
    "bn": _bn,
    "align": align_block,
    "weights": fine_tune,
    "block_search": _block_search,
    "archrepair": search_cell,
    "arachne": search_weights,
    "apricot": adapt_weights,
    "mode": select_inputs,
    "sensei": train_on_worst,
    "fewshot_mix": train_on_mixtures,
    "deeprepair": train_on_styles,
    "certify": repair_last_layer,
}
