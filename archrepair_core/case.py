"""A case: the customer's model made editable, the data it fails on, and what the original makes of that data."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from archrepair_core.augmentation import Augmentation, choose_augmentation, with_matched_validation
from archrepair_core.blocks import Block
from archrepair_core.data.augment import LITTLE, View, harmless_augmentation, move, natural_augmentation
from archrepair_core.data.formats import load_dataset
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import resolve_preprocessing, to_tensor
from archrepair_core.data.split import DataWarning, Splits, check_labels, prepare_splits
from archrepair_core.errors import ModelError
from archrepair_core.evaluate import predict, run_model
from archrepair_core.facts import Inspection, describe_model
from archrepair_core.fingerprint import divergence, fingerprinted_layers, measure_fingerprint
from archrepair_core.ingest.model import Format, IngestedModel
from archrepair_core.ingest.verify import Parity, verify_decompiled
from archrepair_core.interface import (
    Interface,
    adapt_,
    input_dtype,
    read_interface,
    refuse_several_inputs,
    tensors_by_path,
)
from archrepair_core.layout import lay_out_
from archrepair_core.modes import eval_mode
from archrepair_core.plausibility import question_data
from archrepair_core.recognition import match_views
from archrepair_core.runs import find_blocks_
from archrepair_core.spec import SPLITS, Preprocessing, RepairSpec

BATCH_SIZE = 128
# Enough images to tell whether mirroring hurts, few enough to cost nothing.
AUGMENTATION_PROBE = 512
VERIFY_BATCH = 8
# Where little works, so many times as often as through the recognised corruption known images are replayed as they are:
# with three, walks of two draws in six ended early for what known images lost (docs/choices.md).
BOLD_PLAIN = 6
# Where moves are tried, the first that has labels.
PROBED_ROLES = ("repair", "replay", "guard", "validation")


@dataclass(frozen=True)
class Data:
    """The images by role, how they become the model's input, and what is doubtful about them."""

    splits: Splits
    preprocessing: Preprocessing
    warnings: tuple[DataWarning, ...] = ()

    def tensors(self, role: str, rows: slice) -> Tensor:
        """Some images of a role as model input, [N, C, H, W]."""
        return to_tensor(self.splits.present()[role].images[rows], self.preprocessing)


@dataclass(frozen=True)
class Host:
    """The customer's model: the file's own answers, the editable twin in eval mode on `device`, its blocks in order.

    The twin takes float32 images and gives logits, whatever the file does; `interface` tells the difference.
    `blocks_unknown` says why there are no blocks, where none are needed.
    """

    format: Format
    written_by: str
    reference: nn.Module
    model: nn.Module
    blocks: dict[str, Block]
    device: torch.device
    parity: Parity
    interface: Interface
    blocks_unknown: ModelError | None = None


@dataclass(frozen=True)
class Baseline:
    """The original's logits [N, K] by role, its speed, and how the data it is trained on is varied."""

    logits: Mapping[str, Tensor]
    inputs_per_second: float
    augmentation: Augmentation


@dataclass(frozen=True)
class Case:
    """Everything a repair starts from; `reference` is the earlier good version of the model, where one was given."""

    spec: RepairSpec
    host: Host
    data: Data
    baseline: Baseline
    reference: nn.Module | None = None

    @property
    def little_works(self) -> bool:
        """Whether the original is right on some, but less than half, of the labelled inputs it is to be repaired with,
        or, where these are only failures or have no labels, of those that validate.

        Where those are only failures too, nothing tells what breaks of the field.
        """
        for images in (self.data.splits.repair, self.data.splits.validation):
            if images is None or not images.labelled:
                continue
            if share := self.right_share(images):
                return share < LITTLE
        return False

    def right_share(self, images: LabelledImages) -> float:
        """Of a labelled split, what the original is right on."""
        return _right_share(self.baseline.logits[images.name], images)

    @property
    def views(self) -> Mapping[str, tuple[View, ...]]:
        """Views by trained role. Where training is to go far, most known images are replayed as they are: what works
        today is lost by half as much at the same gain (docs/choices.md)."""
        augmentation = self.baseline.augmentation
        if augmentation.recognition is None or not augmentation.recognition.fits or not self.little_works:
            return augmentation.views
        replayed = match_views(augmentation.recognition, augmentation.views["repair"], plain=BOLD_PLAIN)
        return {**augmentation.views, "replay": replayed}


def _right_share(logits_NK: Tensor, images: LabelledImages) -> float:
    return float((logits_NK.argmax(1) == torch.as_tensor(images.labels)).float().mean())


def read_data(datasets: Mapping[str, Path], spec: RepairSpec, *, work_dir: Path) -> Data:
    """Load every dataset the spec names, cut what is missing, and resolve the preprocessing. Raises DatasetError."""
    loaded = {}
    for role in SPLITS:
        reference = getattr(spec.datasets, role)
        if reference is not None:
            # A test set that is cut from repair brings its columns from there.
            measured = role == "test" or (role == "repair" and spec.datasets.test is None)
            columns = spec.evaluation.slices if measured and spec.kind == "repair" else ()
            loaded[role] = load_role(role, reference, datasets, spec, work_dir=work_dir, columns=columns)
    splits = prepare_splits(loaded, spec, seed=spec.seed)
    return Data(splits, resolve_preprocessing(spec.preprocessing, splits.repair))


def load_role(
    role: str, reference: str, files: Mapping[str, Path], spec: RepairSpec, *, work_dir: Path, columns: Sequence[str]
) -> LabelledImages:
    """Load one dataset of the spec as its preprocessing and class names say, with these columns of metadata."""
    resize = spec.preprocessing.resize
    return load_dataset(
        reference,
        files,
        name=role,
        work_dir=work_dir,
        resize=(resize[0], resize[1]) if resize else None,
        class_names=spec.model.class_names,
        columns=columns,
    )


def examine_host(
    ingested: IngestedModel,
    images: Mapping[str, LabelledImages],
    preprocessing: Preprocessing,
    *,
    output: str,
    needs_blocks: bool = True,
) -> Host:
    """Prove the editable twin equal to the file on the customer's own images, and find its blocks.

    The first of the `images`, by role, are those it is tried on. `output` is the spec's `model.output`. Raises
    ModelError or DatasetError where the file is no classifier of them.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refuse_several_inputs(ingested.reference)
    role, probed = next(iter(images.items()))
    pictures = to_tensor(probed.images[:VERIFY_BATCH], preprocessing)
    inputs = pictures.to(input_dtype(ingested.reference))
    with torch.inference_mode(), eval_mode(ingested.reference):
        answer = run_model(ingested.reference, inputs, name=role)
    interface = read_interface(ingested.reference, answer, asked=output, num_inputs=len(inputs))
    check_labels(images, num_classes=tensors_by_path(answer)[interface.output].shape[1])
    parity = verify_decompiled(ingested.reference, ingested.model, inputs)
    model = adapt_(ingested.model, interface, pictures).to(device).eval()
    lay_out_(model, pictures.to(device))
    blocks_unknown = None
    try:
        blocks = {block.name: block for block in find_blocks_(model, pictures.to(device))}
    except ModelError as error:
        if needs_blocks:
            raise
        blocks, blocks_unknown = {}, error
    return Host(
        format=ingested.format,
        written_by=ingested.written_by,
        reference=ingested.reference,
        model=model,
        blocks=blocks,
        device=device,
        parity=parity,
        interface=interface,
        blocks_unknown=blocks_unknown,
    )


def inspection_of(ingested: IngestedModel, host: Host, inputs: Tensor) -> Inspection:
    """The facts of a model that was examined; `inputs` [N, C, H, W] are some it was examined with."""
    blocks, unknown = tuple(host.blocks.values()), host.blocks_unknown
    return describe_model(ingested, blocks, shape=tuple(inputs.shape[1:]), source="data", unknown=unknown)


def examine_reference(ingested: IngestedModel, host: Host, data: Data, *, output: str) -> nn.Module:
    """The earlier good version of the model as an editable twin with the same blocks, proved equal to its own file.

    Raises ModelError `reference_differs` unless it has the host's tensors and blocks.
    """
    earlier = examine_host(ingested, data.splits.present(), data.preprocessing, output=output)
    own, other = (
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for model in (host.model, earlier.model)
    )
    differing = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
    if differing or host.blocks.keys() != earlier.blocks.keys():
        wrong = (
            f"{differing[0]!r} is {own.get(differing[0], 'absent')} in the model and "
            f"{other.get(differing[0], 'absent')} in the reference"
            if differing
            else f"only one of the two has the blocks {', '.join(sorted(host.blocks.keys() ^ earlier.blocks.keys()))}"
        )
        raise ModelError(
            "reference_differs",
            f"model.reference has another architecture: {wrong}",
            hint="send an earlier version of the same network, exported the same way, or leave model.reference out",
        )
    return earlier.model


def vary_data(host: Host, data: Data, spec: RepairSpec, *, work_dir: Path) -> tuple[Data, Augmentation]:
    """How training data is varied, and the data with what that makes possible: labels to choose on, without labels from
    the field. Only `auto` looks for a corruption unasked: the other methods do what their papers say."""
    augmentation = choose_augmentation(
        spec.repair.augment,
        host.model,
        data.splits,
        data.preprocessing,
        seed=spec.seed,
        may_match=spec.repair.method == "auto" and spec.kind == "repair",
        harmless_moves=lambda: _harmless_moves(host, data),
    )
    splits = with_matched_validation(
        data.splits,
        augmentation.recognition,
        was_cut=spec.datasets.validation is None,
        shows_only_failures=lambda: _shows_only_failures(host, data),
        work_dir=work_dir,
        seed=spec.seed,
    )
    return replace(data, splits=splits), augmentation


def _shows_only_failures(host: Host, data: Data) -> bool:
    """Of the labelled repair inputs."""
    repair = data.splits.repair
    logits = predict(host.model, repair, data.preprocessing, batch_size=BATCH_SIZE, device=host.device)
    return not _right_share(logits, repair)


def measure_baseline(host: Host, data: Data, augmentation: Augmentation) -> Baseline:
    """Run the original once over everything; its logits feed localization, distillation, flip counts and the gate."""
    started = time.monotonic()
    logits = {
        role: predict(host.model, images, data.preprocessing, batch_size=BATCH_SIZE, device=host.device)
        for role, images in data.splits.present().items()
    }
    speed = sum(map(len, logits.values())) / (time.monotonic() - started)
    return Baseline(logits, speed, augmentation)


def question(host: Host, data: Data, baseline: Baseline, spec: RepairSpec) -> Data:
    """The data with warnings where preprocessing or labels do not look like the model's own. Raises DatasetError."""
    doubts = question_data(host.model, data.splits.present(), data.preprocessing, baseline.logits, spec)
    return replace(data, warnings=(*data.warnings, *doubts))


def _harmless_moves(host: Host, data: Data) -> str:
    present = data.splits.present()
    role = next((role for role in PROBED_ROLES if role in present and present[role].labelled), None)
    if role is None:
        return natural_augmentation(lambda view: _nearness(host, data, view))
    probed: LabelledImages = present[role]
    inputs = data.tensors(role, slice(0, AUGMENTATION_PROBE))

    def answers_of(view: View) -> Tensor:
        with torch.inference_mode():
            parts = [host.model(move(part, view).to(host.device)).cpu() for part in inputs.split(BATCH_SIZE)]
        return torch.cat(parts).argmax(1)

    return harmless_augmentation(answers_of, torch.as_tensor(probed.labels[:AUGMENTATION_PROBE]))


def _nearness(host: Host, data: Data, view: View) -> float:
    """How far viewed inputs are, to the model, from the inputs, as a share of how far one half is from the other."""
    inputs, layers = data.tensors("repair", slice(0, AUGMENTATION_PROBE)), fingerprinted_layers(host.model)

    def distance(some: Tensor, others: Tensor) -> float:
        ours, theirs = (measure_fingerprint(host.model, part.split(BATCH_SIZE), layers) for part in (some, others))
        return sum(float(divergence(ours[name], theirs[name])) for name in ours)

    return distance(move(inputs, view), inputs) / max(distance(inputs[::2], inputs[1::2]), 1e-9)
