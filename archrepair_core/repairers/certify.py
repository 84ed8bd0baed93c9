"""`certify`: change the last layer as little as makes named inputs right, and write down why they are right for sure.

Sotoudeh & Thakur, "Provable Repair of Deep Neural Networks", PLDI 2021, section 4 (point repair), for the last layer,
where a decoupled network is the network itself: the logits are linear in its weights, so the smallest change under
which every named input is right by a margin is a linear program. As in the authors' code (95616ARG/PRDNN) the size of a
change is its mean magnitude plus its largest, the margin 0.05, and no weight moves by more than 3.

Deviations and choices:
- HiGHS (SciPy) for Gurobi. Constraints are added as they are violated, which gives the same optimum.
- Named are failing repair inputs. Passing ones, 1000 of them at most, are to stay right as well, softly: what they lack
  costs ten times.
- Making all failing inputs right can break more answers than it mends. So the nearest ones are named first: 1, 2, 4,
  8, … of them, and validation, within the limits on what breaks, chooses among the programs as it chooses α elsewhere:
  a half-way change would make no named input right.
- Programs end with the time: of one that is not solved by then nothing is taken, nor of any for more inputs.
- The certificate (certificate.py) speaks of the weights as delivered, and of those inputs only that it proves.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.optimize import linprog
from torch import nn

from archrepair_core.certificate import Points, points_at
from archrepair_core.errors import ModelError
from archrepair_core.features import Indices
from archrepair_core.localize.influence import recorded
from archrepair_core.modes import eval_mode
from archrepair_core.processes import is_over
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.search import cut_before, leave_time_to_walk
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.selection import ValidationScore, score_tail
from archrepair_core.training import TrainingRun

MARGIN = 0.05
LARGEST_CHANGE = 3.0
KEEPING_WEIGHT = 10.0
MAX_KEPT = 1000
MAX_ROUNDS = 30
# Of a margin; what the solver leaves open counts as met.
TOLERANCE = 1e-6

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """The last layer: logits are `weight_KD`·features + `bias_K`."""

    weight_KD: Floats
    bias_K: Floats
    has_bias: bool


def repair_last_layer(
    arena: Arena, suspects: Sequence[str], *, level: str, deadline: float, epochs: int | None
) -> list[Trial]:
    """A trial for each number of named inputs, the best within the limits first; the original where none is within.

    Raises ModelError where the logits are not what a linear layer gives.
    """
    if arena.is_stopped:
        return []
    until, _ = leave_time_to_walk(arena, deadline, epochs=epochs)
    cache = arena.starts["original"]
    name = find_head(cache.model, arena)
    points = points_at(cache.model, name, cache.splits["repair"], cache.preprocessing, cache.device)
    layer, head = cache.model.get_submodule(name), head_of(cache.model, name)
    assert isinstance(layer, nn.Linear)
    shortfall = _margins(head, points.features_PD.astype(np.float64), points.labels_P)
    failing = np.flatnonzero(shortfall <= 0)
    failing = failing[np.argsort(-shortfall[failing], kind="stable")]
    kept = np.random.default_rng(arena.seed).permutation(np.flatnonzero(shortfall > 0))[:MAX_KEPT]
    trials = [_trial(arena, name, points, changed=None, started=time.monotonic())]
    for count in doubling(len(failing)):
        if len(trials) > 1 and is_over(until, arena.stopped):
            break
        started = time.monotonic()
        arena.on_progress(f"{name}: the smallest change that makes {count} of {len(failing)} failing inputs right")
        solve = partial(smallest_change, head, points, must=failing[:count], keep=kept, seconds=until - started)
        changed = _solved_once(arena, head, count, solve)
        if changed is None:
            break
        asked = points.subset(np.sort(np.concatenate([failing[:count], kept])))
        trials.append(_trial(arena, name, asked, changed=changed, started=started))
    return sorted(trials, key=lambda trial: (not _is_within(arena, trial), -trial.score.utility))


def _solved_once(arena: Arena, head: Head, count: int, solve: Callable[[], Head | None]) -> Head | None:
    """The changed head that `solve` finds for so many named inputs, or that an attempt before this one found."""
    checkpoint = arena.checkpoints.at(f"certify-{count}") if arena.checkpoints else None
    saved = checkpoint.read() if checkpoint else None
    if saved:
        return replace(head, weight_KD=saved.tensors["weight"].numpy(), bias_K=saved.tensors["bias"].numpy())
    changed = solve()
    if checkpoint and changed:
        tensors = {"weight": torch.from_numpy(changed.weight_KD), "bias": torch.from_numpy(changed.bias_K)}
        checkpoint.write(tensors, {})
    return changed


def find_head(model: nn.Module, arena: Arena) -> str:
    """The linear layer whose answer is the model's. Raises ModelError where there is none."""
    names = [name for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
    with torch.inference_mode(), eval_mode(model), recorded(model, names) as seen:
        logits = model(arena.sample())
    found = [name for name, (entering, out) in seen.items() if entering.dim() == 2 and torch.equal(out, logits)]
    if not found:
        raise ModelError(
            "no_linear_head",
            f"repair.method 'certify' changes the linear layer that gives the logits, and none of {len(names)} does",
            hint="choose another repair.method",
        )
    return found[-1]


def head_of(model: nn.Module, name: str) -> Head:
    """The layer's weights in double precision, which holds them exactly."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    weight_KD = layer.weight.detach().double().cpu().numpy()
    has_bias = layer.bias is not None
    bias_K = layer.bias.detach().double().cpu().numpy() if has_bias else np.zeros(len(weight_KD))
    return Head(weight_KD, bias_K, has_bias)


def doubling(count: int) -> list[int]:
    """1, 2, 4, … and the count itself."""
    return [*(2**power for power in range(count.bit_length()) if 2**power < count), count] if count else []


def smallest_change(head: Head, points: Points, *, must: Indices, keep: Indices, seconds: float) -> Head | None:
    """The nearest head under which all of `must` are right by the margin, and as many of `keep` as that allows.

    None where there is none, or it is not found in so many seconds.
    """
    until = time.monotonic() + seconds
    items = np.concatenate([must, keep])
    features_PD, labels_P = points.features_PD[items].astype(np.float64), points.labels_P[items]
    pairs = _violated(head, features_PD, labels_P, slack_P=np.zeros(len(items)), at_least_one=True)
    for _ in range(MAX_ROUNDS):
        left = until - time.monotonic()
        if left <= 0:
            return None
        solved = _solve(head, features_PD, labels_P, pairs, num_must=len(must), seconds=left)
        if solved is None:
            return None
        changed, slack_P = solved
        more = _violated(changed, features_PD, labels_P, slack_P=slack_P)
        new = np.array(sorted({*map(tuple, more.tolist())} - {*map(tuple, pairs.tolist())}), dtype=np.intp)
        if not len(new):
            return changed
        pairs = np.concatenate([pairs, new])
    return None


def _violated(
    head: Head, features_PD: Floats, labels_P: Indices, *, slack_P: Floats, at_least_one: bool = False
) -> npt.NDArray[np.intp]:
    """Pairs (point, class) that lack some of the margin; of each point at least its nearest rival where asked."""
    lead_PK = _leads(head, features_PD, labels_P)
    lacking_PK = lead_PK + slack_P[:, None] < MARGIN * (1 - TOLERANCE)
    if at_least_one:
        lacking_PK[np.arange(len(labels_P)), lead_PK.argmin(1)] = True
    return np.argwhere(lacking_PK)


def _leads(head: Head, features_PD: Floats, labels_P: Indices) -> Floats:
    """By how much the label's logit exceeds each other one [P, K]; infinite for the label itself."""
    logits_PK = features_PD @ head.weight_KD.T + head.bias_K
    rows = np.arange(len(labels_P))
    lead_PK = logits_PK[rows, labels_P][:, None] - logits_PK
    lead_PK[rows, labels_P] = np.inf
    return lead_PK


def _margins(head: Head, features_PD: Floats, labels_P: Indices) -> Floats:
    return np.asarray(_leads(head, features_PD, labels_P).min(1))


def _solve(
    head: Head, features_PD: Floats, labels_P: Indices, pairs: npt.NDArray[np.intp], *, num_must: int, seconds: float
) -> tuple[Head, Floats] | None:
    """The program over these pairs: the changed head and the slack of each point [P]; None without a solution.

    Variables: the classes' changes upwards, downwards, the slack of the kept points, and the largest change.
    """
    classes = np.unique(np.concatenate([labels_P[pairs[:, 0]], pairs[:, 1]]))
    place_K = np.full(len(head.weight_KD), -1)
    place_K[classes] = np.arange(len(classes))
    extended_PE = np.concatenate([features_PD, np.ones((len(features_PD), 1))], axis=1)
    num_changes, num_kept = len(classes) * extended_PE.shape[1], len(features_PD) - num_must
    change = _change_rows(extended_PE, place_K, labels_P, pairs, num_changes)
    slack = sparse.csr_matrix(
        (np.ones(int((pairs[:, 0] >= num_must).sum())),
         (np.flatnonzero(pairs[:, 0] >= num_must), pairs[pairs[:, 0] >= num_must, 0] - num_must)),
        shape=(len(pairs), num_kept),
    )  # fmt: skip
    one = sparse.identity(num_changes, format="csr")
    rows = sparse.bmat(
        [
            [-change, change, -slack, None],
            [one, one, None, sparse.csr_matrix(-np.ones((num_changes, 1)))],
        ],
        format="csr",
    )
    lead_PK = _leads(head, features_PD, labels_P)
    limits = np.concatenate([lead_PK[pairs[:, 0], pairs[:, 1]] - MARGIN, np.zeros(num_changes)])
    cost = np.concatenate(
        [np.full(2 * num_changes, 1 / num_changes), np.full(num_kept, KEEPING_WEIGHT / max(1, num_kept)), [1.0]]
    )
    upper = np.full(2 * num_changes, LARGEST_CHANGE)
    if not head.has_bias:
        upper.reshape(2, len(classes), -1)[:, :, -1] = 0
    bounds = np.stack([np.zeros(len(cost)), np.concatenate([upper, np.full(num_kept, np.inf), [LARGEST_CHANGE]])], 1)
    found = linprog(cost, A_ub=rows, b_ub=limits, bounds=bounds, method="highs", options={"time_limit": seconds})
    if found.status != 0:
        return None
    moved_CE = (found.x[:num_changes] - found.x[num_changes : 2 * num_changes]).reshape(len(classes), -1)
    weight_KD, bias_K = head.weight_KD.copy(), head.bias_K.copy()
    weight_KD[classes] += moved_CE[:, :-1]
    bias_K[classes] += moved_CE[:, -1]
    slack_P = np.concatenate([np.zeros(num_must), found.x[2 * num_changes : -1]])
    return replace(head, weight_KD=weight_KD, bias_K=bias_K), slack_P


def _change_rows(
    extended_PE: Floats, place_K: Indices, labels_P: Indices, pairs: npt.NDArray[np.intp], num_changes: int
) -> sparse.csr_matrix:
    """What each change adds to the lead of each pair: the features for the label's row, less them for the rival's."""
    points, rivals = pairs[:, 0], pairs[:, 1]
    width = extended_PE.shape[1]
    values = np.concatenate([extended_PE[points], -extended_PE[points]], axis=1)
    starts = np.stack([place_K[labels_P[points]], place_K[rivals]], axis=1) * width
    columns = (starts[:, :, None] + np.arange(width)).reshape(len(pairs), -1)
    rows = np.repeat(np.arange(len(pairs)), 2 * width)
    return sparse.csr_matrix((values.ravel(), (rows, columns.ravel())), shape=(len(pairs), num_changes))


def _trial(arena: Arena, name: str, points: Points, *, changed: Head | None, started: float) -> Trial:
    """The model with the changed head as validation sees it; without a change the original, at α = 0."""
    cache = arena.starts["original"]
    model = copy.deepcopy(cache.model)
    if changed is not None:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(changed.weight_KD))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(changed.bias_K))
    cut_name, tail = cut_before(arena, model, (name,))
    score = score_tail(tail, cache.features(cut_name, "validation"), cache.device, arena.field_margins_M)
    run = TrainingRun((), 0.0, 0 if changed is None else 1, time.monotonic() - started, diverged=False)
    genotype, alpha = Genotype((name,)), 0.0 if changed is None else 1.0
    return Trial(genotype, model, alpha, score, run, certifies=None if changed is None else points)


def _is_within(arena: Arena, trial: Trial) -> bool:
    """Whether it breaks no more than may break, where that is asked."""
    if not arena.limits.interpolate or not trial.alpha:
        return True
    assert isinstance(trial.score, ValidationScore)
    if trial.score.expected_broken > arena.max_broken:
        return False
    cut_name, tail = cut_before(arena, trial.model, trial.genotype.scope)
    guard = arena.guard_at(cut_name)
    if guard is None:
        return True
    guarded = score_tail(tail, guard.features, arena.starts["original"].device)
    return guarded.broken <= guard.max_broken and -guarded.change <= guard.max_lost
