"""How training data is varied: which views each trained role is seen under, and what was recognised to choose them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from archrepair_core.data.augment import AUGMENTATIONS, View
from archrepair_core.data.policies import POLICIES, policy_views
from archrepair_core.data.split import Splits, stratified_split
from archrepair_core.errors import DatasetError
from archrepair_core.match import full_scale_of, recognise, why_not
from archrepair_core.recognition import Recognition, match_views, pass_through
from archrepair_core.spec import Preprocessing

TRAINED_ROLES = ("repair", "replay")
# Of replay, where validation has to come from there.
VALIDATION_SHARE = 0.15


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


def with_matched_validation(splits: Splits, recognition: Recognition | None, *, work_dir: Path, seed: int) -> Splits:
    """Where the repair inputs have no labels: a labelled validation set, cut from replay and passed through what was
    recognised in them. Unchanged where they have labels, a labelled one was given, or nothing fits."""
    replay = splits.replay
    given = splits.validation is not None and splits.validation.labelled
    if splits.repair.labelled or given or replay is None or recognition is None or not recognition.fits:
        return splits
    kept, held = stratified_split(replay.labels, fraction=VALIDATION_SHARE, seed=seed)
    if recognition.corruption is None or not len(held):
        return splits
    validation = pass_through(
        replay.subset(held), recognition.corruption, name="validation", work_dir=work_dir, seed=seed
    )
    note = f"validation is {len(held)} replay samples through the recognised {recognition.corruption.describe()}"
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
