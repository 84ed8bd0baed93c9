"""Which samples play which role. Drawn by label and seed only, never looking at the model's answers."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from archrepair_core.data.images import LabelledImages
from archrepair_core.errors import DatasetError, SpecError
from archrepair_core.spec import LEVELS, RepairSpec

# Held-out role → the share of `repair` it is cut from when absent, and the roles that must not contain its samples.
HELD_OUT: dict[str, tuple[float, tuple[str, ...]]] = {
    "test": (0.3, ("repair", "validation", "replay")),
    "validation": (0.2, ("repair", "replay")),
}
# What can be done without labels, by kind of job: the values of `repair.method` and of `localization.method`.
LABEL_FREE = {"repair": ("auto", "bn", "align"), "localize": ("auto", "drift")}
# Methods of repair that learn from known images, which the others do without; some put failing ones into them.
NEEDS_REPLAY = ("apricot", "mode", "fewshot_mix", "deeprepair")
MIXES_REPLAY = ("fewshot_mix", "deeprepair")
# So much of `regression` has a say in the choice; the rest is the measurement, which needs the numbers more.
GUARD_SHARE = 0.3
_NO_LABELS = "has no labels: no 'labels' in the .npz, no 'label' in the Parquet file, or all of them -1"


@dataclass(frozen=True)
class DataWarning:
    """What is doubtful about the data, and what could be done; the job goes on."""

    code: str
    detail: str
    hint: str


@dataclass(frozen=True)
class Splits:
    """The data by role. `guard` is the part of `regression` that choices may see. `notes` say what was cut, dropped or
    accepted, for the report. A job of kind localize has no `test` unless one is given."""

    repair: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages | None
    replay: LabelledImages | None
    guard: LabelledImages | None
    regression: LabelledImages | None
    notes: tuple[str, ...]

    def present(self) -> dict[str, LabelledImages]:
        """Role → data, of the roles that have any."""
        roles = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "notes"}
        return {role: data for role, data in roles.items() if data is not None}


def stratified_split(labels: np.ndarray, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row indices (kept, held out), sorted; `fraction` of each class is held out.

    A class of two or more has at least one on each side (which scikit-learn's splitter does not promise); a class of
    one is kept.
    """
    random = np.random.default_rng(seed)
    held_out: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            held_out.append(rows[: min(max(round(fraction * len(rows)), 1), len(rows) - 1)])
    held = np.sort(np.concatenate(held_out)) if held_out else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), held), held


def prepare_splits(datasets: Mapping[str, LabelledImages], spec: RepairSpec, *, seed: int) -> Splits:
    """Give every sample one role. An absent `test` is 30 % of `repair`, an absent `validation` 20 % of the rest.

    Raises DatasetError when a sample learned from stands in a given `test` too, unless the spec allows it, and where
    labels are missing. Every other overlap is taken out of the side that is learned from, and noted.
    """
    parts = {role: replace(dataset, name=role) for role, dataset in datasets.items()}
    _check_alike(parts, spec)
    _check_labelled(parts, spec)
    _check_replay(parts, spec)
    notes: list[str] = [] if parts["repair"].labelled else ["repair has no labels"]
    for held in _held_out(parts, spec):
        fraction, learned_from = HELD_OUT[held]
        was_cut = held not in parts
        if was_cut:
            parts["repair"], parts[held] = _cut(parts["repair"], held, fraction=fraction, seed=seed)
            notes.append(f"{held} was cut from repair: {len(parts[held])} samples, stratified by label, seed {seed}")
        for learned in [role for role in learned_from if role in parts]:
            accept = spec.datasets.allow_leak and not was_cut
            refuse = held == "test" and not was_cut and not accept
            parts[learned], note = _keep_apart(
                parts[learned], parts[held], refuse=refuse, accept=accept, was_cut=was_cut
            )
            notes.extend(note)
    notes.extend(_note_regression(parts))
    notes.extend(_cut_guard_(parts, seed=seed))
    roles = [field.name for field in fields(Splits) if field.name not in ("repair", "notes")]
    return Splits(repair=parts["repair"], notes=tuple(notes), **{role: parts.get(role) for role in roles})


def prepare_measured(datasets: Mapping[str, LabelledImages], spec: RepairSpec) -> dict[str, LabelledImages]:
    """The data of an evaluation by role: nothing is learned, so nothing is cut. Raises DatasetError without labels."""
    _check_alike(datasets, spec)
    unlabelled = [role for role, dataset in datasets.items() if not dataset.labelled]
    if unlabelled:
        raise DatasetError("labels_missing", f"{unlabelled[0]} {_NO_LABELS}", hint="an evaluation needs labels")
    return dict(datasets)


def _held_out(parts: Mapping[str, LabelledImages], spec: RepairSpec) -> list[str]:
    """The held-out roles to fill: a localization measures nothing, and without labels it has nothing to choose on."""
    if spec.kind == "repair":
        return list(HELD_OUT)
    return [role for role in HELD_OUT if role in parts or (role == "validation" and parts["repair"].labelled)]


def _check_labelled(parts: Mapping[str, LabelledImages], spec: RepairSpec) -> None:
    """Only `repair` may come without labels, and only where the method needs none."""
    unlabelled = [role for role, dataset in parts.items() if not dataset.labelled]
    others = [role for role in unlabelled if role != "repair"]
    if others:
        raise DatasetError(
            "labels_missing",
            f"{others[0]} {_NO_LABELS}",
            hint=f"send labels with {others[0]}, or leave it out; only repair may be without",
        )
    method = spec.repair.method if spec.kind == "repair" else spec.localization.method
    if unlabelled and method not in LABEL_FREE[spec.kind]:
        raise DatasetError(
            "labels_missing",
            f"repair has no labels, and {'repair' if spec.kind == 'repair' else 'localization'}.method "
            f"{method!r} needs them",
            hint=f"send labels, or set the method to one of {', '.join(LABEL_FREE[spec.kind])}",
        )
    if unlabelled and spec.kind == "repair" and "test" not in parts:
        raise DatasetError(
            "labels_missing",
            "repair has no labels, so no test set for the verdict can be cut from it",
            hint="send a labelled test set",
        )


def _check_replay(parts: Mapping[str, LabelledImages], spec: RepairSpec) -> None:
    """Raises SpecError where the method cannot do without known images and there are none, and DatasetError where it
    mixes images of other channels."""
    if spec.kind == "repair" and spec.repair.method in NEEDS_REPLAY and "replay" not in parts:
        others = ", ".join(sorted(set(LEVELS) - set(NEEDS_REPLAY)))
        raise SpecError(
            "replay_missing",
            f"repair.method {spec.repair.method!r} learns from images of the training data, and datasets.replay is "
            "absent",
            hint=f"send training images as datasets.replay, or set repair.method to one of {others}",
        )
    if spec.kind == "repair" and spec.repair.method in MIXES_REPLAY:
        channels = {role: parts[role].images.shape[3] for role in ("repair", "replay")}
        if channels["repair"] != channels["replay"]:
            raise DatasetError(
                "mixed_channels",
                f"repair.method {spec.repair.method!r} mixes known and failing images, and repair has "
                f"{channels['repair']} channels, replay {channels['replay']}",
                hint="save all alike, in colour or in grey",
            )


def _cut_guard_(parts: dict[str, LabelledImages], *, seed: int) -> list[str]:
    """Set a part of `regression` aside for the choice: what chooses must not measure."""
    if "regression" not in parts:
        return []
    kept, guard = stratified_split(parts["regression"].labels, fraction=GUARD_SHARE, seed=seed)
    if not len(guard):
        return []
    whole = parts["regression"]
    parts["regression"], parts["guard"] = whole.subset(kept), whole.subset(guard, name="guard")
    counts = f"{len(guard)} of {len(whole)} samples"
    return [f"{counts} of regression guard the choice; the others are measured, seed {seed}"]


def find_leaks(learned: LabelledImages, held_out: LabelledImages) -> np.ndarray:
    """Indices into `learned` of samples whose exact pixels stand in `held_out` too. A re-encoded copy is not found."""
    return np.flatnonzero(np.isin(learned.sample_digests, held_out.sample_digests))


def check_labels(images: Mapping[str, LabelledImages], num_classes: int) -> None:
    """Refuse labels the model has no output for, naming the first one and its row in the source; names, too."""
    for role, dataset in images.items():
        if dataset.class_names is not None and len(dataset.class_names) != num_classes:
            raise DatasetError(
                "class_names_number",
                f"model.class_names are {len(dataset.class_names)} names, but the model has {num_classes} outputs",
                hint="name every output once, in their order",
            )
        wrong = np.flatnonzero(dataset.labels >= num_classes)
        if len(wrong):
            label, row = dataset.labels[wrong[0]], dataset.images.rows[wrong[0]]
            raise DatasetError(
                "label_out_of_range",
                f"label {label} in {role} row {row}, but the model has {num_classes} outputs",
                hint=f"labels are 0 to {num_classes - 1}, in the order of the model's outputs",
            )


def _check_alike(parts: Mapping[str, LabelledImages], spec: RepairSpec) -> None:
    """What is trained and compared together must reach the model in one size and one scale."""
    dtypes = {role: str(dataset.images.dtype) for role, dataset in parts.items()}
    if spec.preprocessing.scale == "auto" and len(set(dtypes.values())) > 1:
        raise DatasetError(
            "mixed_dtypes",
            f"some images are bytes and some are floats ({_listed(dtypes)}), and scale 'auto' would treat them "
            "differently",
            hint="set preprocessing.scale, or save all alike",
        )
    sizes = {role: "{}×{}".format(*dataset.images.shape[1:3]) for role, dataset in parts.items()}
    if spec.preprocessing.resize is None and len(set(sizes.values())) > 1:
        raise DatasetError(
            "mixed_sizes",
            f"the sets hold images of different height×width ({_listed(sizes)})",
            hint="set preprocessing.resize to [height, width], or save all alike",
        )


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{role} {value}" for role, value in values.items())


def _cut(repair: LabelledImages, role: str, *, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    kept, held = stratified_split(repair.labels, fraction=fraction, seed=seed)
    if not len(held):
        raise DatasetError(
            "too_few_samples",
            f"{role} cannot be cut from the {len(repair)} samples left of repair: no class has two of them",
            hint=f"send more samples, or a {role} set of its own",
        )
    return repair.subset(kept), repair.subset(held, name=role)


def _keep_apart(
    learned: LabelledImages, held: LabelledImages, *, refuse: bool, accept: bool, was_cut: bool
) -> tuple[LabelledImages, list[str]]:
    """`learned` without the samples of `held`, and a note if there were any."""
    leaks = find_leaks(learned, held)
    if not len(leaks):
        return learned, []
    if accept:
        return learned, [f"{len(leaks)} samples of {learned.name} stand in {held.name} too; allow_leak accepted them"]
    if len(leaks) == len(learned) and was_cut:
        raise DatasetError(
            "too_few_samples",
            f"nothing is left of {learned.name}: all its {len(learned)} samples are copies of samples in {held.name}",
            hint="send samples that differ from each other",
        )
    if refuse or len(leaks) == len(learned):
        first = ", ".join(str(row) for row in learned.images.rows[leaks[:3]])
        raise DatasetError(
            "leak",
            f"{len(leaks)} of {len(learned)} samples of {learned.name} stand in {held.name} too, "
            f"the first in {learned.name} row {first}",
            hint=f"send a {held.name} set apart, leave it out so that it is cut from repair, or set "
            "datasets.allow_leak",
        )
    rest = learned.subset(np.setdiff1d(np.arange(len(learned)), leaks))
    return rest, [f"{len(leaks)} samples of {learned.name} that stand in {held.name} too were left out of it"]


def _note_regression(parts: Mapping[str, LabelledImages]) -> list[str]:
    if "regression" not in parts:
        return []
    seen = {role: find_leaks(parts["regression"], parts[role]) for role in ("repair", "replay") if role in parts}
    return [
        f"{len(leaks)} samples of regression stand in {role} too: what must not be lost is also learned from"
        for role, leaks in seen.items()
        if len(leaks)
    ]
