"""Race genotypes by successive halving on cached features; validation decides.

Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016: every
candidate gets a little training, the better part gets more, the best gets what is left of the budget.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from archrepair_core.alignment import held_out_divergence, watched_divergence
from archrepair_core.batches import Batch
from archrepair_core.blocks import Block
from archrepair_core.calls import trace_calls
from archrepair_core.cost import count_macs, latency_ratio
from archrepair_core.cut import Cut, cut_at
from archrepair_core.prefix_cache import INPUT, ROLES
from archrepair_core.scope import NETWORK, Scope, load_scoped_state, scoped_state
from archrepair_core.search.genotype import Genotype, build_
from archrepair_core.search.lesson import Lesson, Tail, as_it_is
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.selection import ALPHAS, Score, choose_alpha_, choose_alpha_by_divergence_
from archrepair_core.training import train

KEEP_SHARE = 3  # one candidate in three goes on to the next rung
# The first rung trains on so many inputs, each further one on three times as many.
RUNG_INPUTS = 2048
# The rungs together may use this share of the time, and only time that training the first guess can spare: a
# well-trained first guess fixed more than a well-chosen candidate without time to train (docs/choices.md).
RACING_SHARE = 0.1
# With this share of the time left when the winner has ended, the runner-up is trained as well.
SECOND_SHARE = 0.3
# The winner's training leaves this share of the time for walking it back, or what the walk takes where that is more: up
# to the larger share, beyond which the walk is a coarser one.
WALK_SHARE, MAX_WALK_SHARE = 0.06, 0.15
COARSE_ALPHAS = (0.2, 0.5, 1.0)
# A probe only has to be compared, so it is not walked back as finely as the winner; while the winner trains, looks half
# of the way back must do.
PROBE_ALPHAS, LOOK_ALPHAS = (0.25, 0.5, 1.0), (0.5,)
PASSING = (PROBE_ALPHAS, LOOK_ALPHAS)  # nothing that is walked so is delivered


def race(arena: Arena, genotypes: Sequence[Genotype], *, deadline: float, epochs: int | None) -> list[Trial]:
    """Every trial: the winner, trained for the time that is left, and then the probes that chose it.

    `genotypes` come in order of prior belief: when time runs short the later ones are not tried, and one of them wins
    only when it clearly beats those before it. A probe was trained to be compared; that of the winner is the result
    where it clearly beats what the long training made of it, which then has learned the few images by heart.
    `epochs` fixes the length of the last training, None derives it from `deadline`, a `time.monotonic()` value; when
    the winner has got worse before, the runner-up is trained too. Stopped before that, the best probe is the result.
    """
    started = time.monotonic()
    racing_until = min(started + RACING_SHARE * (deadline - started), deadline - arena.settling_seconds)
    field, probes = list(genotypes), list[Trial]()
    rung_epochs = rung_epochs_of(arena)
    while len(field) > 1 and not arena.is_stopped and arena.decide(time.monotonic() < racing_until):
        rung = run_rung(arena, field, epochs=rung_epochs, until=racing_until)
        probes += rung
        field = [trial.genotype for trial in _in_order(rung)[: max(1, len(rung) // KEEP_SHARE)]]
        rung_epochs *= KEEP_SHARE
    train_until, alphas = leave_time_to_walk(arena, deadline, epochs=epochs, since=started)
    if arena.is_stopped:
        return _newest_first(probes)
    finals = [run_trial(arena, field[0], epochs=epochs, deadline=train_until, alphas=alphas)] if field else []
    second = next((genotype for genotype in [*field, *genotypes] if genotype not in field[:1]), None)
    time_is_left = not arena.is_stopped and train_until - time.monotonic() > SECOND_SHARE * (deadline - started)
    if second is not None and epochs is None and arena.decide(time_is_left) and affordable(arena, second):
        finals.append(run_trial(arena, second, epochs=None, deadline=train_until, alphas=alphas))
    early = next((probe for probe in reversed(probes) if finals and probe.genotype == finals[0].genotype), None)
    ordered = _in_order([*finals, *([early] if early else [])])
    return [*ordered, *(probe for probe in probes if probe is not early)]


def run_alone(arena: Arena, genotype: Genotype, lesson: Lesson, *, deadline: float, epochs: int | None) -> list[Trial]:
    """One genotype with the whole budget; nothing where the best so far is wanted before it begins."""
    if arena.is_stopped:
        return []
    until, alphas = leave_time_to_walk(arena, deadline, epochs=epochs)
    return [run_trial(arena, genotype, epochs=epochs, deadline=until, alphas=alphas, lesson=lesson)]


def leave_time_to_walk(
    arena: Arena, deadline: float, *, epochs: float | None, since: float | None = None
) -> tuple[float, Sequence[float]]:
    """When training has to end for the walk back to be done by `deadline`, and the α of that walk.

    Both times are `time.monotonic()` values, as is `since`, when the budget began to be spent (now). Training of so
    many `epochs` is walked back alike on any machine.
    """
    whole = deadline - (time.monotonic() if since is None else since)
    fine, coarse = ((len(alphas) + 1) * arena.scoring_seconds for alphas in (ALPHAS, COARSE_ALPHAS))
    if epochs is not None or arena.decide(fine <= MAX_WALK_SHARE * whole):
        return deadline - max(WALK_SHARE * whole, fine), ALPHAS
    return deadline - min(coarse, whole), COARSE_ALPHAS


def _newest_first(probes: Sequence[Trial]) -> list[Trial]:
    """The best probe first, each genotype by the longest it was trained; then the shorter ones."""
    newest = {probe.genotype: probe for probe in probes}
    return [*_in_order(list(newest.values())), *(probe for probe in probes if newest[probe.genotype] is not probe)]


def rung_epochs_of(arena: Arena) -> float:
    """Epochs of the first rung."""
    splits = arena.starts["original"].splits
    teaching = [splits[role] for role in ROLES["training"] if role in splits and splits[role].labelled]
    return RUNG_INPUTS / sum(map(len, teaching))


def run_trial(
    arena: Arena,
    genotype: Genotype,
    *,
    epochs: float | None,
    deadline: float,
    alphas: Sequence[float] = ALPHAS,
    weights: Mapping[str, Tensor] = MappingProxyType({}),
    lesson: Lesson = as_it_is,
) -> Trial:
    """Train one genotype from the common start and walk it back to the α that validation likes best.

    `weights` are put in before the training; `lesson` has the last word on what is learned from. Without `interpolate`,
    and where a cell has replaced a block, so that there is nothing to walk back to, α is 1.
    """
    cache = arena.starts[genotype.start]
    model = build_(copy.deepcopy(cache.model), genotype, arena.blocks, seed=arena.seed)
    cut_name, tail = cut_before(arena, model, genotype.scope)
    scope = trained(genotype.scope, arena.blocks)
    # From another start the network is walked back all the way to the original, or what the start broke stays broken.
    walked_to = arena.starts["original"].model if scope == NETWORK else model
    start = {name: value.clone() for name, value in scoped_state(walked_to, scope).items()}
    load_scoped_state(model, dict(weights))
    features = cache.features(cut_name, "training")
    walk_back = partial(walk_back_, arena, model, tail, genotype, cut_name=cut_name, scope=scope, start=start)
    plan = arena.plan(epochs, deadline, name=repr(genotype))
    if alphas is not PROBE_ALPHAS:  # a probe is too short to be stopped
        # Judged as it would be delivered: what has gone too far whole may still be the best when walked back.
        plan = replace(plan, score=lambda: _value_and_error(walk_back(alphas=LOOK_ALPHAS)[1]))
    with (
        penalties(arena, model, genotype) as penalty,
        lesson(model, tail, features, replace(plan, penalty=penalty)) as (lessons, plan),
    ):
        run = train(
            model,
            tail,
            lessons,
            scope=scope,
            plan=plan,
            on_step=lambda step, total, loss: arena.on_progress(
                f"{genotype.name}: step {step} of {total}", step=step, total_steps=total, loss=loss
            ),
        )
    alpha, score = walk_back(alphas=alphas)
    return Trial(genotype, model, alpha, score, run)


def _value_and_error(score: Score) -> tuple[float, float]:
    return score.utility, score.standard_error


def walk_back_(
    arena: Arena,
    model: nn.Module,
    tail: Tail,
    genotype: Genotype,
    *,
    cut_name: str,
    scope: Scope,
    start: dict[str, Tensor],
    alphas: Sequence[float] = ALPHAS,
) -> tuple[float, Score]:
    """Leave `model` where validation likes it best between `start` and what it is now.

    Without labels the divergence of validation from the healthy statistics decides. The guard is asked about results,
    not about probes. Where the original is gone there is no way back to it.
    """
    walks_back = arena.limits.interpolate and all(edit.keeps_original for edit in genotype.edits)
    alphas = alphas if walks_back else (1.0,)
    cache = arena.starts[genotype.start]
    if not cache.splits["validation"].labelled:
        healthy = arena.healthy()
        return choose_alpha_by_divergence_(
            model, lambda: held_out_divergence(model, cache, healthy), scope=scope, start=start, alphas=alphas
        )
    return choose_alpha_(
        model,
        tail,
        cache.features(cut_name, "validation"),
        scope=scope,
        start=start,
        max_broken=arena.max_broken if walks_back else math.inf,
        population_M=arena.field_margins_M,
        from_original=scope == NETWORK or genotype.start == "original",
        guard=arena.guard_at(cut_name, genotype.start) if walks_back and alphas not in PASSING else None,
        alphas=alphas,
    )


@contextmanager
def penalties(arena: Arena, model: nn.Module, genotype: Genotype) -> Iterator[Callable[[Batch], Tensor] | None]:
    """What spec, genotype and arena add to the loss of every batch: the weighted divergence from the healthy
    statistics, and the distance of replayed images from what the original makes of them untouched."""
    weight = genotype.align if arena.limits.align == "auto" else arena.limits.align
    with ExitStack() as open_until_trained:
        terms: list[Callable[[Batch], Tensor]] = []
        if weight:
            divergence = open_until_trained.enter_context(watched_divergence(model, arena.healthy()))
            terms.append(lambda _batch: weight * divergence())
        if arena.restoration:
            terms.append(open_until_trained.enter_context(arena.restoration.penalty(model)))
        yield (lambda batch: torch.stack([term(batch) for term in terms]).sum()) if terms else None


def trained(scope: Scope, blocks: Mapping[str, Block]) -> Scope:
    """What trains when these modules do: a block that owns no weights trains those it borrows."""
    return tuple(part for name in scope for part in (blocks[name].scope if name in blocks else (name,)))


def run_rung(arena: Arena, field: Sequence[Genotype], *, epochs: float, until: float) -> list[Trial]:
    """A probe of every affordable genotype, in order; when `until` has passed, the rest is left out."""
    rung: list[Trial] = []
    for genotype in field:
        if arena.is_stopped or (rung and arena.decide(time.monotonic() > until)):
            break
        if affordable(arena, genotype):
            rung.append(run_trial(arena, genotype, epochs=epochs, deadline=math.inf, alphas=PROBE_ALPHAS))
    return rung


def _in_order(rung: Sequence[Trial]) -> list[Trial]:
    """Best first, where a later trial goes before an earlier one only when it clearly beats it."""
    ordered: list[Trial] = []
    for trial in rung:
        place = next((i for i, other in enumerate(ordered) if trial.score.clearly_beats(other.score)), len(ordered))
        ordered.insert(place, trial)
    return ordered


def cut_before(arena: Arena, model: nn.Module, scope: Scope) -> tuple[str, Tail]:
    """Where training of `scope` can start: at its earliest block, or layer, when the model can be cut there, else at
    the input."""
    if scope == NETWORK:
        return INPUT, model
    order = {name: block.depth for name, block in arena.blocks.items()}
    if not order.keys() >= set(scope):
        order = {name: call.order for name, call in trace_calls(model, arena.sample()).items() if name}
    if order.keys() >= set(scope):
        first = min(scope, key=order.__getitem__)
        cut = cut_at(model, first, arena.sample())
        if isinstance(cut, Cut):
            return first, cut.tail
        arena.on_progress(f"{first}: trained on the whole model, which cannot be cut there: {cut.reason}")
    return INPUT, model


def affordable(arena: Arena, genotype: Genotype) -> bool:
    """Whether the edited model stays within the limits on parameters, MACs and latency; all measured, not estimated.

    So is whether it runs at all.
    """
    if not genotype.edits:
        return True
    original = arena.original
    edited = build_(copy.deepcopy(original), genotype, arena.blocks, seed=arena.seed)
    if count_parameters(edited) > arena.limits.max_params_ratio * count_parameters(original):
        return False
    try:
        macs = [count_macs(model, arena.sample())[""] for model in (original, edited)]
        if macs[1] > arena.limits.max_macs_ratio * macs[0]:
            return False
        return arena.decide(latency_ratio(original, edited, arena.sample())) <= arena.limits.max_latency_ratio
    except AttributeError:
        # Some hosts read settings off their blocks (nn.TransformerEncoder): nothing else can stand in for those.
        return False


def count_parameters(model: nn.Module) -> int:
    """Number of scalar parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
