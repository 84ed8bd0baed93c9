"""How training data is varied: which views each trained role is seen under, and what was recognised to choose them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from archrepair_core.data.augment import AUGMENTATIONS, View
from archrepair_core.data.corruptions import Corruption
from archrepair_core.data.policies import POLICIES, policy_views
from archrepair_core.data.split import Splits, find_leaks, stratified_split
from archrepair_core.errors import DatasetError
from archrepair_core.match import full_scale_of, recognise, why_not
from archrepair_core.recognition import Recognition, match_views, pass_through
from archrepair_core.spec import Preprocessing

TRAINED_ROLES = ("repair", "replay")
# Of replay, where validation has to come from there.
VALIDATION_SHARE = 0.15
# Of the labelled field, where replayed images are what is learned from. With a fifth the share that a repair broke was
# estimated so badly that it stood between 0.8 and 2.2 % where 1.2 % was meant (docs/choices.md).
FIELD_VALIDATION_SHARE = 0.5
# Failures that teach beside replayed images, where nothing else of the field is known.
MAX_FAILURES = 200


@dataclass(frozen=True)
class Augmentation:
    """The name of what `auto` became, views by trained role, and what the repair inputs were found to have suffered."""

    name: str
    views: Mapping[str, tuple[View, ...]]
    recognition: Recognition | None = None


def choose_augmentation(
    asked: str,
    model: nn.Module,
    splits: Splits,
    preprocessing: Preprocessing,
    *,
    seed: int,
    may_match: bool,
    harmless_moves: Callable[[], str],
) -> Augmentation:
    """Views for `repair.augment`; `match`, and `auto` when it `may_match`, recognise the corruption behind the repair
    inputs.

    `harmless_moves` names the moves under which the original stays as good. `match` is `auto` that insists: raises
    DatasetError where there is no replay set, or nothing can be recognised in it.
    """
    if asked in POLICIES:
        scale = full_scale_of(splits.repair.images, preprocessing) or 1.0
        return Augmentation(asked, dict.fromkeys(TRAINED_ROLES, policy_views(asked, full_scale=scale)))
    if asked not in ("auto", "match"):
        return Augmentation(asked, dict.fromkeys(TRAINED_ROLES, AUGMENTATIONS[asked]))
    moves = harmless_moves()
    views = dict.fromkeys(TRAINED_ROLES, AUGMENTATIONS[moves])
    wanted = asked == "match" or may_match
    recognition = _recognise(asked, model, splits, preprocessing, seed=seed) if wanted else None
    if recognition is None or not recognition.fits:
        return Augmentation(moves, views, recognition)
    return Augmentation("match", views | {"replay": match_views(recognition, AUGMENTATIONS[moves])}, recognition)


def with_matched_validation(
    splits: Splits,
    recognition: Recognition | None,
    *,
    was_cut: bool,
    shows_only_failures: Callable[[], bool],
    work_dir: Path,
    seed: int,
) -> Splits:
    """Where known images can be replayed through what was recognised, the labels of the field are worth more to choose
    by than to learn from: half of them validate, and where there are none a part of the replayed images does.

    It does so too where the field `shows_only_failures`, among which nobody sees what a repair breaks.
    Unchanged where nothing fits, and where a labelled validation set was given (not `was_cut` from repair).
    """
    if splits.replay is None or recognition is None or recognition.corruption is None or not recognition.fits:
        return splits
    by_replay = partial(_validated_by_replay, corruption=recognition.corruption, work_dir=work_dir, seed=seed)
    if not splits.repair.labelled:
        given = splits.validation is not None and splits.validation.labelled
        return splits if given else by_replay(splits)
    if not was_cut or splits.validation is None:
        return splits
    if splits.replay.labelled and shows_only_failures():
        failures = replace(splits, repair=splits.repair.joined(splits.validation), validation=None)
        validated = by_replay(_few_failures(failures, seed=seed))
        if validated.validation is not None:  # of a handful of known images none can be spared
            return validated
    return _with_more_validation(splits, seed=seed)


def _with_more_validation(splits: Splits, *, seed: int) -> Splits:
    repair, validation = splits.repair, splits.validation
    assert validation is not None, "asked for only where some was cut"
    assert splits.replay is not None, "what is replayed"
    wanted = FIELD_VALIDATION_SHARE * (len(repair) + len(validation)) - len(validation)
    kept, moved = stratified_split(repair.labels, fraction=max(0.0, wanted / len(repair)), seed=seed)
    if not len(moved):
        return splits
    validation = validation.joined(repair.subset(moved))
    note = f"{len(moved)} more samples of repair are validation, because known images are replayed, seed {seed}"
    apart = np.setdiff1d(np.arange(len(splits.replay)), find_leaks(splits.replay, validation))
    replay = splits.replay if len(apart) == len(splits.replay) else splits.replay.subset(apart)
    return replace(
        splits, repair=repair.subset(kept), validation=validation, replay=replay, notes=(*splits.notes, note)
    )


def _few_failures(splits: Splits, *, seed: int) -> Splits:
    """What replayed images teach of the field is all of it, what failures teach is failures: beside more than a few of
    these, what works today is lost sooner than anything is gained (docs/choices.md)."""
    repair = splits.repair
    if len(repair) <= MAX_FAILURES:
        return splits
    kept, left_out = stratified_split(repair.labels, fraction=1 - MAX_FAILURES / len(repair), seed=seed)
    note = f"{len(left_out)} of {len(repair)} failures teach nothing, because known images are replayed"
    return replace(splits, repair=repair.subset(kept), notes=(*splits.notes, note))


def _validated_by_replay(splits: Splits, *, corruption: Corruption, work_dir: Path, seed: int) -> Splits:
    assert splits.replay is not None, "what is replayed"
    replay = splits.replay
    kept, held = stratified_split(replay.labels, fraction=VALIDATION_SHARE, seed=seed)
    if not len(held):
        return splits
    validation = pass_through(replay.subset(held), corruption, name="validation", work_dir=work_dir, seed=seed)
    note = f"validation is {len(held)} replay samples through the recognised {corruption.describe()}"
    return replace(splits, replay=replay.subset(kept), validation=validation, notes=(*splits.notes, note))


def _recognise(
    asked: str, model: nn.Module, splits: Splits, preprocessing: Preprocessing, *, seed: int
) -> Recognition | None:
    known = splits.replay
    reason = (
        why_not(splits.repair.images, known.images, preprocessing)
        if known
        else "there is no replay set: known images are what is passed through the corruption that is recognised"
    )
    if known is None or reason is not None:
        if asked == "match":
            raise DatasetError(
                "no_match", f"repair.augment is 'match', but {reason}", hint="send training images as datasets.replay"
            )
        return None
    return recognise(model, splits.repair.images, known.images, preprocessing=preprocessing, seed=seed)
