"""Localization of a case: observe passing and failing inputs, rank the blocks, name the suspects."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from archrepair_core.blocks import Block
from archrepair_core.case import BATCH_SIZE, Case
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import SpecError
from archrepair_core.localize.observe import observe_layers
from archrepair_core.localize.rank import Localization, Pools, rank_at_random, rank_blocks

# Scores settle long before this; a bigger pool only costs time.
MAX_POOL = 500
AUTO_METHOD = "spectrum+gradient"


def localize(case: Case) -> Localization:
    """Rank the blocks the spec allows. With no passing or no failing repair inputs, or no layer to observe, there is
    nothing to contrast: the order is then random, and `method` says so."""
    asked, blocks = case.spec.localization, list(select_blocks(case).values())
    method = AUTO_METHOD if asked.method == "auto" else asked.method
    right = case.baseline.logits["repair"].argmax(1).numpy() == case.data.splits.repair.labels
    passing, failing = np.flatnonzero(right)[:MAX_POOL], np.flatnonzero(~right)[:MAX_POOL]
    if method == "random" or not len(passing) or not len(failing):
        return rank_at_random(blocks, seed=case.spec.seed)
    # A block that owns no layers is watched as a whole.
    also = [block.name for block in blocks if block.borrowed]
    pools = Pools(
        observe_layers(case.host.model, _batches(case, passing), also=also),
        observe_layers(case.host.model, _batches(case, failing), also=also),
    )
    if not pools.passing:
        return rank_at_random(blocks, seed=case.spec.seed)
    return rank_blocks(pools, blocks, method=method, formula=asked.formula, seed=case.spec.seed)


def select_blocks(case: Case) -> dict[str, Block]:
    """The host's blocks that `include` and `exclude` leave. Raises SpecError when they leave none."""
    include, exclude = case.spec.localization.include or ["*"], case.spec.localization.exclude
    selected = {
        name: block
        for name, block in case.host.blocks.items()
        if _matches(name, include) and not _matches(name, exclude)
    }
    if not selected:
        raise SpecError(
            "no_block_selected",
            f"localization.include {include} and exclude {exclude} leave no block",
            hint=f"the blocks of this model are {', '.join(case.host.blocks)}",
        )
    return selected


def suspects_of(localization: Localization, blocks: dict[str, Block], *, top_k: int) -> list[str]:
    """The `top_k` most suspicious blocks; stages only where the selection leaves nothing smaller."""
    ranked = [row.name for row in localization.blocks]
    smallest = [name for name in ranked if blocks[name].level == "block"] or ranked
    return smallest[:top_k]


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _batches(case: Case, rows: npt.NDArray[np.intp]) -> Iterator[tuple[Tensor, Tensor]]:
    repair: LabelledImages = case.data.splits.repair
    for start in range(0, len(rows), BATCH_SIZE):
        chosen = rows[start : start + BATCH_SIZE]
        yield to_tensor(repair.images[chosen], case.data.preprocessing), torch.as_tensor(repair.labels[chosen])
