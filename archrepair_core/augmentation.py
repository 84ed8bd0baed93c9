"""How training data is varied: which views each trained role is seen under, and what was recognised to choose them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from archrepair_core.data.augment import AUGMENTATIONS, View
from archrepair_core.data.policies import POLICIES, policy_views
from archrepair_core.data.split import Splits
from archrepair_core.errors import DatasetError
from archrepair_core.match import full_scale_of, recognise, why_not
from archrepair_core.recognition import Recognition, match_views
from archrepair_core.spec import Preprocessing

TRAINED_ROLES = ("repair", "replay")


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
    harmless_moves: Callable[[], str],
) -> Augmentation:
    """Views for `repair.augment`; `match` and `auto` recognise the corruption behind the repair inputs.

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
    recognition = _recognise(asked, model, splits, preprocessing, seed=seed)
    if recognition is None or not recognition.fits:
        return Augmentation(moves, views, recognition)
    replay_views = match_views(recognition, flip="flip" in moves)
    return Augmentation("match", views | {"replay": replay_views}, recognition)


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
