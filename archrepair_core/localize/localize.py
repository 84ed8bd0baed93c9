"""Localization of a case: which block to blame, by what, and what kind of fault it looks like.

`auto`: where the network keeps a record of itself, or an earlier version was given, drift orders the blocks
(localize/drift.py, no labels needed): even where none stands out it names a damaged one far more often than anything
else measured. Without either, spectrum and gradient order them (localize/rank.py) and measured probe repairs decide
(localize/probe.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from archrepair_core.fingerprint import Fingerprint, fingerprinted_layers, measure_fingerprint, recorded_fingerprint
from archrepair_core.localize.adversarial import Attack, plan_attack
from archrepair_core.localize.diagnosis import Answers, Evidence, name_kind, standing_apart, standing_out
from archrepair_core.localize.drift import compare_with_reference, measure_drift
from archrepair_core.localize.observe import observe_inputs
from archrepair_core.localize.probe import probe_blocks
from archrepair_core.localize.rank import (
    Floats,
    LayerDrift,
    Localization,
    RankedBlock,
    rank_at_random,
    rank_blocks,
    rank_stability,
    ranked,
    resample_weights,
)
from archrepair_core.processes import clock
from archrepair_core.search.trials import Arena

# Scores settle before this; a bigger pool only costs time.
MAX_POOL, MIN_POOL = 1000, 32
# Multiply-adds of all forward and backward passes of the observation; a backward pass costs two forward ones.
MAX_MACS, FORWARDS_PER_PASS = 5e12, 3
# Of the time a repair leaves for localizing; a ViT of the benchmark was observed for 25 of its 60 seconds. A search of
# one block alone has nothing to fall back on: in a tenth of the budget it was the wrong block one time in three.
OBSERVING_SHARE, SOLE_OBSERVING_SHARE = 0.4, 1.0
# Channel statistics settle within a few hundred inputs.
MAX_DRIFT_INPUTS = 256
SCORED = ("spectrum", "gradient", "spectrum+gradient")
DEFAULT_SCORES = "spectrum+gradient"


@dataclass(frozen=True)
class Health:
    """What a fingerprint says: scores over resampled inputs [B, N], if any.

    `knows_better` where it is the network's own record, or an earlier version's, and not only of other inputs.
    """

    knows_better: bool = False
    blamed: str | None = None
    score_BN: Floats | None = None
    layers: tuple[LayerDrift, ...] = ()
    evidence: Evidence = field(default_factory=dict)


def localize(case: Case, arena: Arena | None = None, *, until: float = math.inf) -> Localization:
    """Rank the blocks the spec allows. With nothing to tell them apart by, the order is random and `method` says so.

    Probes need an `arena` and end at `until` (`clock()` seconds), before which a repair is done observing, too. Raises
    SpecError `no_fingerprint` where drift was asked for and there is nothing to compare with.
    """
    asked, blocks = case.spec.localization.method, list(select_blocks(case).values())
    if asked == "random":
        return rank_at_random(blocks, seed=case.spec.seed)
    health = check_health(case, blocks)
    if asked == "drift" and health.score_BN is None:
        raise SpecError(
            "no_fingerprint",
            "localization.method is 'drift', but the model has no batch-norm with running statistics, no "
            "model.reference was given and no regression set",
            hint="give an earlier good version as model.reference, or choose another localization.method",
        )
    ranking = _rank(case, blocks, health, arena, until=until)
    recognition = case.baseline.augmentation.recognition
    recognised = recognition.describe() if recognition is not None and recognition.fits else None
    kind, evidence = name_kind(health.evidence, _answers(case), blamed=health.blamed, recognised=recognised)
    methods = dict(ranking.methods)
    if health.score_BN is not None:
        names = [block.name for block in blocks]
        methods["drift"] = dict(zip(names, health.score_BN[0].tolist(), strict=True))
    return replace(ranking, kind=kind, evidence=evidence, drift=health.layers, methods=methods)


def check_health(case: Case, blocks: Sequence[Block]) -> Health:
    """Compare the repair inputs' statistics with the record, or every block's map with the earlier version's.

    The earlier version, where one was given, decides: it knows what the block did, not only what its statistics were.
    """
    images, names = case.data.splits.repair, [block.name for block in blocks]
    rows = _draw(np.arange(len(images)), MAX_DRIFT_INPUTS, seed=case.spec.seed)
    weights_BI = resample_weights(np.ones(len(rows), dtype=bool), seed=case.spec.seed)
    health, fingerprint = Health(), _healthy_fingerprint(case)
    smallest = [i for i, block in enumerate(blocks) if block.level == "block"] or list(range(len(blocks)))
    if fingerprint:
        inputs = (inputs for inputs, _ in _batches(case, rows))
        drift = measure_drift(case.host.model, inputs, fingerprint, blocks=blocks, weights_BI=weights_BI)
        blamed, evidence = standing_out(drift, names, among=smallest)
        # Without a record of its own the network is compared with itself on other inputs: that can only tell a shift.
        recorded = bool(recorded_fingerprint(case.host.model))
        health = Health(recorded, blamed if recorded else None, drift.score_BN, drift.rows(), evidence)
    if case.reference is None:
        return health
    inputs = (inputs for inputs, _ in _batches(case, rows))
    score_BN = compare_with_reference(case.host.model, case.reference, inputs, blocks=blocks, weights_BI=weights_BI)
    blamed, evidence = standing_apart(score_BN[:, smallest], [names[i] for i in smallest])
    return Health(True, blamed, score_BN, health.layers, {**health.evidence, **evidence})


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
    ranked_names = [row.name for row in localization.blocks]
    smallest = [name for name in ranked_names if blocks[name].level == "block"] or ranked_names
    return smallest[:top_k]


def _rank(case: Case, blocks: Sequence[Block], health: Health, arena: Arena | None, *, until: float) -> Localization:
    asked: str = case.spec.localization.method
    if asked == "auto" and case.spec.repair.method == "archrepair" and case.spec.kind == "repair":
        asked = DEFAULT_SCORES  # the paper's localization goes with the paper's repair
    if asked == "drift":
        return _rank_by_health(health, blocks)
    if asked == "auto" and health.knows_better:
        by_health = _rank_by_health(health, blocks)
        # Who asks for a localization alone is also told what the answers say; a repair has no use for it.
        if case.spec.kind != "localize":
            return by_health
        scored = _scored(case, blocks, method=DEFAULT_SCORES, limit=_pool_limit(case))
        if scored is None:
            return by_health
        return replace(scored, method="drift", formula="none", blocks=by_health.blocks, stability=by_health.stability)
    if asked == "probe":
        probed = _probed(case, rank_at_random(blocks, seed=case.spec.seed), arena, until=until)
        return probed or rank_at_random(blocks, seed=case.spec.seed)
    limit = min(_pool_limit(case), inputs_until(case, arena, until))
    scored = _scored(case, blocks, method=asked if asked in SCORED else DEFAULT_SCORES, limit=limit)
    if asked == "auto" and scored is None and health.score_BN is not None:
        return _rank_by_health(health, blocks)
    if scored is None:
        return rank_at_random(blocks, seed=case.spec.seed)
    # A repair races its suspects anyway: only a localization on its own has probes decide.
    if asked == "auto" and case.spec.kind == "localize":
        return _probed(case, scored, arena, until=until) or scored
    return scored


def _rank_by_health(health: Health, blocks: Sequence[Block]) -> Localization:
    assert health.score_BN is not None, "asked for only where there are scores"
    # A stage scores as the block in it that does: of equals the smaller one comes first.
    order = sorted(range(len(blocks)), key=lambda place: blocks[place].level == "stage")
    score_BN = health.score_BN[:, order]
    rows = ranked([blocks[place].name for place in order], score_BN[0], score_BN[1:])
    return Localization("drift", "none", rows, stability=rank_stability(health.score_BN[0], health.score_BN[1:]))


def _scored(case: Case, blocks: Sequence[Block], *, method: str, limit: int) -> Localization | None:
    """By spectrum and gradient, of `limit` inputs per pool; None without passing or failing inputs, or without a layer
    to observe."""
    labels = case.data.splits.repair.labels
    right = case.baseline.logits["repair"].argmax(1).numpy() == labels
    seed = case.spec.seed
    passing, failing = (_draw(np.flatnonzero(side), limit, seed=seed) for side in (right, ~right & (labels >= 0)))
    if not len(passing) or not len(failing):
        return None
    # A block that owns no layers is watched as a whole.
    also = [block.name for block in blocks if block.borrowed]
    rows = np.concatenate([passing, failing])
    seen = observe_inputs(case.host.model, _batches(case, rows), also=also, attack=_attack(case, rows))
    # In batches of another size an answer on the edge may fall to the other side.
    if seen is None or len(set(seen.right_I[: seen.num_items].tolist())) < 2:
        return None
    return rank_blocks(seen, blocks, method=method, formula=case.spec.localization.formula, seed=seed)


def _probed(case: Case, scored: Localization, arena: Arena | None, *, until: float) -> Localization | None:
    """The ranking with measured gains first, in the order of the halving; a block not probed keeps its place behind.

    It then scores no more than the worst of those that were.
    """
    if arena is None or not arena.has_labels:
        return None
    probes = probe_blocks(arena, _smallest(scored, case.host.blocks), until=until, seed=case.spec.seed)
    if not probes.names:
        return None
    order = probes.order
    rows = {row.name: row for row in ranked(probes.names, probes.gain_BN[0], probes.gain_BN[1:])}
    last = min(0.0, *order.values())
    behind = [RankedBlock(row.name, last, 0.0, 0.0) for row in scored.blocks if row.name not in order]
    return replace(
        scored,
        method="probe",
        blocks=(*(replace(rows[name], score=score) for name, score in order.items()), *behind),
        stability=rank_stability(probes.gain_BN[0], probes.gain_BN[1:]),
        methods={**scored.methods, "probe": dict(zip(probes.names, probes.gain_BN[0].tolist(), strict=True))},
    )


def _smallest(ranking: Localization, blocks: dict[str, Block]) -> list[str]:
    return suspects_of(ranking, blocks, top_k=len(ranking.blocks))


def _healthy_fingerprint(case: Case) -> Fingerprint:
    """The network's own record, else its statistics on inputs that work; empty where there is neither."""
    model, healthy = case.host.model, case.data.splits.guard
    recorded = recorded_fingerprint(model)
    if recorded or healthy is None:
        return recorded
    rows = _draw(np.arange(len(healthy)), MAX_DRIFT_INPUTS, seed=case.spec.seed)
    parts = (rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE))
    batches = (to_tensor(healthy.images[part], case.data.preprocessing) for part in parts)
    return measure_fingerprint(model, batches, fingerprinted_layers(model))


def _answers(case: Case) -> Answers | None:
    labels = case.data.splits.repair.labels
    if not (labels >= 0).all():
        return None
    replay, accuracy = case.data.splits.replay, None
    if replay is not None:
        accuracy = float((case.baseline.logits["replay"].argmax(1).numpy() == replay.labels).mean())
    return Answers(case.baseline.logits["repair"], labels, accuracy)


def _attack(case: Case, rows: npt.NDArray[np.intp]) -> Attack | None:
    asked = case.spec.localization.adversarial
    if not asked.steps:
        return None
    sample, _ = next(_batches(case, rows))
    return plan_attack(asked, case.data.preprocessing, sample)


def _pool_limit(case: Case) -> int:
    """Inputs per pool: enough for stable scores, and no more than the multiply-adds allow on a large network."""
    macs = sum(block.macs for block in case.host.blocks.values() if block.level == "block")
    return _within_limits(MAX_MACS / (_forwards_per_input(case) * max(macs, 1)))


def inputs_until(case: Case, arena: Arena | None, until: float) -> int:
    """Inputs per pool that a repair has the time for; a localization alone takes what it needs."""
    if arena is None or case.spec.kind == "localize":
        return MAX_POOL
    share = SOLE_OBSERVING_SHARE if case.spec.repair.method == "archrepair" else OBSERVING_SHARE
    seconds = arena.decide(share * (until - clock()))
    return _within_limits(seconds * case.baseline.inputs_per_second / _forwards_per_input(case))


def _forwards_per_input(case: Case) -> int:
    """What observing one input of each pool and its twin costs, in forward passes."""
    return 2 * FORWARDS_PER_PASS * (case.spec.localization.adversarial.steps + 1)


def _within_limits(inputs: float) -> int:
    return int(min(MAX_POOL, max(MIN_POOL, inputs)))


def _draw(rows: npt.NDArray[np.intp], limit: int, *, seed: int) -> npt.NDArray[np.intp]:
    """At most `limit` of the rows, in order: a set may be sorted by class."""
    if len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _batches(case: Case, rows: npt.NDArray[np.intp]) -> Iterator[tuple[Tensor, Tensor]]:
    repair: LabelledImages = case.data.splits.repair
    for start in range(0, len(rows), BATCH_SIZE):
        chosen = rows[start : start + BATCH_SIZE]
        yield to_tensor(repair.images[chosen], case.data.preprocessing), torch.as_tensor(repair.labels[chosen])
