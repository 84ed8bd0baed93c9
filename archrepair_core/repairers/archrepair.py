"""`archrepair`: our re-implementation of the method of the paper; its authors published no code.

Qi et al., "ArchRepair: Block-Level Architecture-Oriented Repairing for Deep Neural Networks", TOSEM 2023. The most
suspicious block is relaxed to a supernet whose alphas and weights are trained jointly, on repair and replay data at
once; a cell is derived, trained on with the weights it has, and measured. docs/archrepair.md names every choice.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import SupportsFloat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archrepair_core.blocks import Block, describe_layer, replace_block_
from archrepair_core.errors import ModelError, SpecError
from archrepair_core.prefix_cache import Features
from archrepair_core.repairers.weights import layers_by_blame
from archrepair_core.scope import load_scoped_state, scoped_state
from archrepair_core.search.dag import OUTPUT_NODE, Edge
from archrepair_core.search.derive import DERIVATIONS, without_dead_ends
from archrepair_core.search.genotype import Edit, Genotype, build_
from archrepair_core.search.lesson import Tail
from archrepair_core.search.operations import ORIGINAL
from archrepair_core.search.primitives import span_of
from archrepair_core.search.search import affordable, cut_before, leave_time_to_walk, run_trial, trained
from archrepair_core.search.supernet import Supernet, relax
from archrepair_core.search.trials import Arena, SearchRecord, Trial
from archrepair_core.selection import run_tail, score_tail
from archrepair_core.training import settle_, train

# Of the seconds; the derived cell is trained with the rest. With `epochs` each of the two takes so many.
SEARCH_SHARE = 0.5
NUM_SNAPSHOTS = 4
# Steps are dear here, and few; with batches of 64 a search on a lossy camera took 3 to 15 of them and found nothing.
MAX_BATCH, MIN_BATCH = 32, 8
# Activations that one training step of the supernet may hold; a large image has its batch made smaller for it.
MAX_ACTIVATION_BYTES = 1.5 * 1024**3
# Tensors of the size of the output that one edge keeps for its backward pass.
TENSORS_PER_EDGE = 36


def search_cell(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """One trial: the cell found for the most suspicious block that a cell can replace, or with `level="layer"` for a
    layer of it.

    A cell beyond the limits on cost loses its weakest operations; where none is left, the block's weights are trained.
    Raises SpecError for `level="network"` and ModelError where no suspect can be searched.
    """
    block = layer_of(arena, suspects) if level == "layer" else _target(arena, suspects, level=level)
    arena = replace(arena, blocks={**arena.blocks, block.name: block})
    training_until, alphas = leave_time_to_walk(arena, deadline, epochs=epochs)
    model, strengths, record = _search(arena, block, epochs=epochs, deadline=training_until)
    genotype = within_limits(arena, block, strengths)
    weights = carried_weights(model, genotype, block)
    record = replace(record, derived_accuracy=_untrained_accuracy(arena, genotype, weights))
    trial = run_trial(arena, genotype, epochs=epochs, deadline=training_until, alphas=alphas, weights=weights)
    return [replace(trial, search=record)]


def _target(arena: Arena, suspects: Sequence[str], *, level: str) -> Block:
    if level == "network":
        raise SpecError(
            "level_not_searchable",
            "repair.method 'archrepair' searches one block, and repair.level is 'network'",
            hint="leave repair.level out, or name a stage in localization.include",
        )
    fitting = [arena.blocks[name] for name in suspects if span_of(arena.blocks[name])]
    if not fitting:
        found = [arena.blocks[name] for name in suspects]
        shapes = ", ".join(f"{block.name} {block.input_shape} → {block.output_shape}" for block in found)
        raise ModelError(
            "not_searchable",
            f"no operation leads from input to output of the suspects {shapes}",
            hint="raise localization.top_k, name blocks in localization.include, or use repair.method 'weights'",
        )
    return fitting[0]


def layer_of(arena: Arena, suspects: Sequence[str]) -> Block:
    """Of the first suspect that holds layers which a cell can replace, the one that failing inputs blame most.

    A suspect may be a layer itself. Raises ModelError where there is none.
    """
    ranked = layers_by_blame(arena)
    for suspect in suspects:
        for name in ranked:
            layer = None
            if f"{name}.".startswith(f"{suspect}."):
                layer = describe_layer(arena.original, arena.sample(), name)
            if layer is not None and span_of(layer):
                return layer
    raise ModelError(
        "not_searchable",
        f"no operation leads from input to output of a layer of the suspects {', '.join(suspects)}",
        hint="leave repair.level out, raise localization.top_k, or use repair.method 'weights'",
    )


def _search(
    arena: Arena, block: Block, *, epochs: int | None, deadline: float
) -> tuple[nn.Module, dict[Edge, float], SearchRecord]:
    """The model with the trained supernet, the edges of the cell with their strengths, and how it went.

    Takes a share of the time until `deadline`, counted from when the features are there.
    """
    began, cache = time.monotonic(), arena.starts["original"]
    model = copy.deepcopy(cache.model)
    relaxed = relax(model.get_submodule(block.name), block, seed=arena.seed).to(cache.device)
    replace_block_(model, block.name, relaxed)
    supernet = relaxed.get_submodule("branch")
    assert isinstance(supernet, Supernet)
    cut_name, tail = cut_before(arena, model, (block.name,))
    features, shares = cache.features(cut_name, "training"), [supernet.shares()]

    def on_step(step: int, total: int, loss: SupportsFloat) -> None:
        message = f"{block.name}: searching, step {step} of {total}"
        arena.on_progress(message, step=step, total_steps=total, loss=loss)
        if step % max(1, total // NUM_SNAPSHOTS) == 0 and step < total:
            shares.append(supernet.shares())

    until = deadline - (1 - SEARCH_SHARE) * (deadline - time.monotonic())
    plan = arena.plan(epochs, until, name=f"supernet of {block.name}")
    plan = replace(plan, batch_size=_batch_size(block, supernet))
    scope = trained((block.name,), arena.blocks)
    run = train(model, tail, features, scope=scope, plan=plan, on_step=on_step)
    validation, select = cache.features(cut_name, "validation"), arena.limits.select
    strengths = DERIVATIONS[select](supernet, lambda: _loss(tail, validation, cache.device))
    accuracy = score_tail(tail, validation, cache.device).accuracy
    shares.append(supernet.shares())
    return model, strengths, SearchRecord(select, tuple(shares), accuracy, None, time.monotonic() - began, run)


def _batch_size(block: Block, supernet: Supernet) -> int:
    bytes_per_image = 4 * math.prod(block.output_shape) * TENSORS_PER_EDGE * len(supernet.ends)
    return int(min(MAX_BATCH, max(MIN_BATCH, MAX_ACTIVATION_BYTES // bytes_per_image)))


def _untrained_accuracy(arena: Arena, genotype: Genotype, weights: dict[str, Tensor]) -> float:
    """Validation accuracy of the derived model as it comes out of the supernet, with statistics of its own."""
    cache = arena.starts["original"]
    model = build_(copy.deepcopy(cache.model), genotype, arena.blocks, seed=arena.seed)
    load_scoped_state(model, weights)
    cut_name, tail = cut_before(arena, model, genotype.scope)
    scope = trained(genotype.scope, arena.blocks)
    settle_(model, tail, cache.features(cut_name, "training"), scope=scope, seed=arena.seed)
    return score_tail(tail, cache.features(cut_name, "validation"), cache.device).accuracy


def _loss(tail: Tail, features: Features, device: torch.device) -> float:
    return float(F.cross_entropy(run_tail(tail, features, device), features.labels_N))


def within_limits(arena: Arena, block: Block, strengths: dict[Edge, float]) -> Genotype:
    """The cell without as few of its weakest operations as the limits demand; the block as it is where none is left."""
    edges = list(strengths)
    while edges and any(edge.operation != ORIGINAL for edge in edges):
        genotype = Genotype((block.name,), (Edit(block.name, tuple(edges)),))
        if affordable(arena, genotype):
            return genotype
        new = [edge for edge in edges if edge.operation != ORIGINAL]
        weakest = min(new, key=strengths.__getitem__)
        arena.on_progress(f"{block.name}: without {weakest.operation}, for which the limits on cost leave no room")
        edges = list(without_dead_ends([edge for edge in edges if edge != weakest]))
    return Genotype((block.name,))


def carried_weights(searched: nn.Module, genotype: Genotype, block: Block) -> dict[str, Tensor]:
    """The supernet's weights under the names they have in the derived model.

    What is new counts, beside an original that stays, as it did in the supernet; in its place it counts fully.
    """
    state = scoped_state(searched, (block.name, *block.borrowed))
    carried = {name: state[name] for name in block.borrowed}
    (edit,) = genotype.edits or (None,)
    original = f"{block.name}.original." if edit else f"{block.name}."
    if edit is None or edit.keeps_original:
        carried |= _renamed(state, f"{block.name}.original.", original)
    if edit is not None:
        shape = (block.output_shape[0], 1, 1) if len(block.output_shape) == 3 else block.output_shape[-1:]
        carried[f"{block.name}.branch.scale"] = torch.full(shape, _weight_beside_original(searched, edit))
    for edge in edit.new_edges if edit else ():
        graph = f"{edge.module_name}." if edit and len(edit.new_edges) > 1 else ""
        found = f"{block.name}.branch.edges.{edge.module_name}.operations.{edge.operation}."
        carried |= _renamed(state, found, f"{block.name}.branch.operation.{graph}")
    return carried


def _weight_beside_original(searched: nn.Module, edit: Edit) -> float:
    """The mean share of the new operations that lead to the output, as a multiple of the original's."""
    if not edit.keeps_original:
        return 1.0
    supernet = searched.get_submodule(f"{edit.block}.branch")
    assert isinstance(supernet, Supernet)
    last = [edge for edge in edit.new_edges if edge.target == OUTPUT_NODE]
    shares = [supernet.mixed(edge.source, edge.target).shares()[edge.operation].item() for edge in last]
    return sum(shares) / len(shares) / supernet.original_share().item()


def _renamed(state: dict[str, Tensor], prefix: str, new: str) -> dict[str, Tensor]:
    return {new + name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
