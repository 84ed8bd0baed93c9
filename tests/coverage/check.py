"""Does a model come back whole? START HERE: `check` runs every column of the coverage table on one archive.

The archive takes the way of a customer's: gate, repack, load, decompile, verify, export. Each column fails on its own.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.blocks import find_blocks
from archrepair_core.errors import ModelError
from archrepair_core.export import export_torchscript
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.outputs import largest_relative_difference, tensors_in
from archrepair_core.ingest.verify import verify_decompiled
from archrepair_core.runs import find_blocks_
from archrepair_core.search.genotype import Genotype, branch_beside, build_
from archrepair_core.search.primitives import primitives_for
from tests.coverage.entry import Kind
from tests.coverage.weights import randomise_, without_what_traces_lose_

# Gradients are sums over the batch and image, taken by other kernels in another order.
GRADIENT_TOLERANCE_FACTOR = 100
SKETCH_ELEMENTS = 2**16


@dataclass(frozen=True)
class Cell:
    """One column of one model: held, did not (False), or does not apply (None); `detail` says why or how."""

    passed: bool | None
    detail: str
    seconds: float


class NotApplicable(Exception):  # no error: the question cannot be asked of this model
    """The column's question cannot be asked of this model; the message says why."""


@dataclass
class _Case:
    eager: nn.Module
    kind: Kind
    batches: list[tuple[Any, ...]]
    directory: Path
    tolerance: float
    reference: Any = None
    model: Any = None
    eager_gradients: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def image(self) -> Tensor:
        """The larger batch, where the engine wants one tensor."""
        (batch,) = [self.batches[-1]] if len(self.batches[-1]) == 1 else [()]
        if not batch or not isinstance(batch[0], Tensor):
            raise NotApplicable("takes several inputs; the engine's question is about one tensor")
        return batch[0]


def check(
    eager: nn.Module,
    inputs: Callable[[int], tuple[Any, ...]],
    kind: Kind,
    *,
    directory: Path,
    batch_sizes: tuple[int, int] = (1, 2),
    tolerance: float = 1e-5,
    keeps_values: bool = False,
) -> dict[str, Cell]:
    """Every column of COLUMNS for the archive that torch.jit makes of `eager`, which is changed on the way.

    `inputs(n)` are a call's arguments for n items; `directory` is scratch. `keeps_values` leaves the parameters alone.
    """
    torch.manual_seed(0)
    batches = [inputs(count) for count in batch_sizes]
    randomise_(eager, inputs(4), keeps_values=keeps_values)
    case = _Case(eager.eval(), kind, batches, directory, tolerance)
    cells: dict[str, Cell] = {}
    for column, (question, needed) in COLUMNS.items():
        unmet = [name for name in needed if cells[name].passed is not True]
        cells[column] = Cell(None, f"not reached: {unmet[0]}", 0.0) if unmet else _answer(question, case)
    return cells


def _answer(question: Callable[[_Case], str], case: _Case) -> Cell:
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detail, passed = question(case), True
    except NotApplicable as reason:
        detail, passed = str(reason), None
    except Exception as error:  # noqa: BLE001  # whatever a model's code raises is this column's result
        detail, passed = f"{type(error).__name__}: {error}".strip(), False
    return Cell(passed, detail[:600], round(time.process_time() - started, 2))


def _archive(case: _Case) -> str:
    if case.kind == "scripted":
        compiled = torch.jit.script(case.eager)
    else:
        # Attention takes another path without gradients, so a trace need not repeat itself; dicts need strict=False.
        compiled = torch.jit.trace(case.eager, _copied(case.batches[-1]), check_trace=False, strict=False)
    torch.jit.save(compiled, str(case.directory / "customer.pt"))
    return ""


def _ingest(case: _Case) -> str:
    case.reference, case.model = _ingested(case.directory / "customer.pt")
    return ""


def _ingested(path: Path) -> tuple[nn.Module, nn.Module]:
    """(reference, model) of an archive, which is deleted: the files of a large model would fill the disk."""
    ingested = ingest_model(path, path.parent)
    path.unlink()
    return ingested.reference.eval(), ingested.model.eval()


def _outputs(case: _Case) -> str:
    largest = 0.0
    for batch in case.batches:
        expected, archived, rebuilt = (_run(model, batch) for model in (case.eager, case.reference, case.model))
        tensors = tensors_in(expected).values()
        assert tensors, "the eager model gives no tensor"
        assert all(tensor.isfinite().all() for tensor in tensors), "the eager model's own answer is not finite"
        differences = {
            "archive differs from eager": _difference(archived, expected),
            "rebuilt model differs from eager": _difference(rebuilt, expected),
            "rebuilt model differs from archive": largest_relative_difference(rebuilt, archived),
        }
        for what, difference in differences.items():
            assert difference <= case.tolerance, f"{what} by {difference:.3g} on {_sizes(batch)}"
        largest = max(largest, *differences.values())
    return f"largest relative difference {largest:.2g}"


def _difference(answer: Any, eager: Any) -> float:
    """Tensor by tensor in order: a scripted GoogLeNet gives a NamedTuple of one where the eager one gives a tensor."""
    return largest_relative_difference(list(tensors_in(answer).values()), list(tensors_in(eager).values()))


def _state_dict(case: _Case) -> str:
    archived, rebuilt = case.reference.state_dict(), case.model.state_dict()
    assert list(archived) == list(rebuilt), f"keys differ: {sorted(archived.keys() ^ rebuilt.keys())[:6]}"
    eager = case.eager.state_dict()
    # TorchScript saves every buffer, also those that the eager model does not.
    unsaved = {name: buffer for name, buffer in case.eager.named_buffers() if name not in eager}
    expected = eager | {name: unsaved[name] for name in unsaved.keys() & archived.keys()}
    assert expected.keys() == rebuilt.keys(), (
        f"keys differ from eager's: {sorted(expected.keys() ^ rebuilt.keys())[:6]}"
    )
    unlike = [key for key in rebuilt if not torch.equal(_bits(rebuilt[key]), _bits(expected[key]))]
    assert not unlike, f"{len(unlike)} tensors differ, among them {unlike[0]}"
    return f"{len(rebuilt)} entries, {len(expected) - len(eager)} of them buffers that eager does not save"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _verified(case: _Case) -> str:
    parity = verify_decompiled(case.reference, case.model, case.image)
    return f"{parity.num_trainable} trainable, {len(parity.untrained)} without gradient in eval mode"


def _blocks(case: _Case) -> str:
    expected, found = _block_names(case.eager, case.image), _block_names(case.model, case.image)
    missing, added = [n for n in expected if n not in found], [n for n in found if n not in expected]
    assert expected == found, f"{len(found)} of {len(expected)} as in eager; missing {missing[:4]}, added {added[:4]}"
    levels = [level for _, level in found]
    return f"{levels.count('block')} / {levels.count('stage')}"


def _block_names(model: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    try:
        return [(block.name, block.level) for block in find_blocks(model, image)]
    except ModelError as error:
        if error.code.endswith("no_repairable_block"):
            return []
        raise


def _export(case: _Case) -> str:
    path = case.directory / "export.pt"
    reloaded = _exported(case, case.model, path)
    for batch in case.batches:
        difference = largest_relative_difference(_run(reloaded, batch), _run(case.model, batch))
        assert difference <= case.tolerance, f"differs by {difference:.3g} after export"
    archived = case.reference.state_dict()
    assert reloaded.state_dict().keys() == archived.keys(), "the export has other state_dict keys"
    changed = [
        key for key, tensor in reloaded.state_dict().items() if not torch.equal(_bits(tensor), _bits(archived[key]))
    ]
    assert not changed, f"{len(changed)} tensors changed on the way, among them {changed[0]}"
    return ""


def _exported(case: _Case, model: nn.Module, path: Path) -> Any:
    """Written by the engine, where the engine can (one tensor in), else by torch.jit.script alone; loaded again."""
    try:
        inputs = case.image
    except NotApplicable:
        torch.jit.save(torch.jit.script(model), str(path))
    else:
        done = export_torchscript(model, path, inputs=inputs, original=case.reference)
        # A trace may come back scripted; the other way round the train mode would be lost.
        assert done.method == "script" or not done.note, done.note
    return torch.jit.load(str(path)).eval()


def _train_mode(case: _Case) -> str:
    lost = without_what_traces_lose_(case.eager) if case.kind == "traced" else []
    batch = case.batches[-1]
    expected, case.eager_gradients = _train_once(case.eager, batch)
    found, case.gradients = _train_once(case.model, batch)
    difference = _difference(found, expected)
    assert difference <= case.tolerance, f"train-mode answer differs from eager's by {difference:.3g}"
    statistics, counters = _changed_buffers(case)
    assert not statistics, f"{len(statistics)} buffers differ after a step, among them {statistics[0]}"
    notes = [f"lost in the trace: {', '.join(lost)}"] if lost else []
    notes += [f"{len(counters)} num_batches_tracked stand still"] if counters else []
    return "; ".join(notes)


def _train_once(model: nn.Module, batch: tuple[Any, ...]) -> tuple[Any, dict[str, Tensor]]:
    """The answer of one forward in train mode, and of its backward a sketch of the gradients there are, by name."""
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(1)
    answer = model(*_copied(batch))
    torch.manual_seed(2)
    # Weighted: the plain sum of a normalised or softmaxed answer has no gradient.
    parts = [
        (tensor * torch.randn_like(tensor)).sum() for tensor in tensors_in(answer).values() if tensor.requires_grad
    ]
    assert parts, "nothing to train: no answer has a gradient"
    torch.stack(parts).sum().backward()
    model.eval()
    named = model.named_parameters(remove_duplicate=False)
    gradients = {name: _sketch(parameter.grad) for name, parameter in named if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return answer, gradients


def _sketch(gradient: Tensor) -> Tensor:
    """Evenly spaced elements and the norm: whole gradients of the largest models would not fit beside four copies."""
    flat = gradient.flatten()
    norm = torch.linalg.vector_norm(flat, dtype=torch.float64)
    return torch.cat([flat[:: 1 + flat.numel() // SKETCH_ELEMENTS].double(), norm[None]])


def _changed_buffers(case: _Case) -> tuple[list[str], list[str]]:
    """(buffers, counters of batches) that differ between eager and rebuilt model."""
    ours, saved = dict(case.model.named_buffers()), case.model.state_dict().keys()
    differing = [
        name
        for name, buffer in case.eager.named_buffers()
        if name in saved and largest_relative_difference(ours[name], buffer) > case.tolerance
    ]
    counters = [name for name in differing if name.endswith("num_batches_tracked")]
    return [name for name in differing if name not in counters], counters


def _gradients(case: _Case) -> str:
    """Judges the gradients that `_train_mode` saw."""
    ours, theirs = case.gradients, case.eager_gradients
    named = case.model.named_parameters(remove_duplicate=False)
    trainable = {name for name, parameter in named if parameter.requires_grad}
    missing = trainable - ours.keys()
    if missing:
        lost = missing & _train_once(case.reference, case.batches[-1])[1].keys()
        assert not lost, f"{len(lost)} parameters lost their gradient: {sorted(lost)[:4]}"
    # What cancels out (a bias before batch-norm) is noise: small against the largest gradient of all.
    floor = 1e-4 * max(gradient[:-1].abs().max().item() for gradient in theirs.values())
    allowed = case.tolerance * GRADIENT_TOLERANCE_FACTOR
    unlike = [
        name
        for name, gradient in theirs.items()
        if name in ours and (ours[name] - gradient).abs().max() > allowed * max(gradient.abs().max().item(), floor)
    ]
    assert not unlike, f"{len(unlike)} gradients differ from eager's, among them {unlike[0]}"
    listed = f"; not trained by the archive either: {', '.join(sorted(missing)[:3])}" if missing else ""
    return f"{len(trainable) - len(missing)} of {len(trainable)}{listed}"


def _again(case: _Case) -> str:
    case.eager = case.model = nn.Identity()  # their memory is needed
    _, model = _ingested(case.directory / "export.pt")
    how = _repair_(case, model)
    _exported(case, model, case.directory / "repaired.pt")
    _, third = _ingested(case.directory / "repaired.pt")
    assert third.state_dict().keys() == model.state_dict().keys(), "other state_dict keys"
    for batch in case.batches:
        difference = largest_relative_difference(_run(third, batch), _run(model, batch))
        assert difference <= case.tolerance, f"differs by {difference:.3g} after repair, export and ingest"
    return how


def _repair_(case: _Case, model: nn.Module) -> str:
    """What the search does to a model: a cell beside a block, trained away from zero. Else: other weights."""
    try:
        blocks = {block.name: block for block in find_blocks_(model, case.image) if primitives_for(block)}
    except (ModelError, NotApplicable):
        blocks = {}
    torch.manual_seed(3)
    if not blocks:
        _move_weights_(model)
        return "weights moved: no block for a cell"
    name = list(blocks)[len(blocks) // 2]
    primitive = next(iter(primitives_for(blocks[name])))
    build_(model, Genotype((name,), (branch_beside(name, primitive),)), blocks, seed=3)
    branch: Any = model.eval().get_submodule(name).branch
    nn.init.uniform_(branch.scale, 0.5, 1.0)
    if case.image.is_floating_point():
        branch.to(case.image.dtype)
    return f"{primitive} beside {name}"


def _move_weights_(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + 0.01 * torch.rand_like(parameter))


def _run(model: nn.Module, batch: tuple[Any, ...]) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(*_copied(batch))


def _copied(batch: Any) -> Any:
    """In-place layers overwrite what they are given."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, dict):
        return {key: _copied(item) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_copied, batch))
    return type(batch)(map(_copied, batch)) if isinstance(batch, list | tuple) else batch


def _sizes(batch: tuple[Any, ...]) -> str:
    return ", ".join(str(list(item.shape)) for item in batch if isinstance(item, Tensor))


# The question of each column, and the columns it builds on.
COLUMNS: dict[str, tuple[Callable[[_Case], str], tuple[str, ...]]] = {
    "archive": (_archive, ()),
    "ingest": (_ingest, ("archive",)),
    "state_dict": (_state_dict, ("ingest",)),
    "outputs": (_outputs, ("ingest",)),
    "verified": (_verified, ("ingest",)),
    "blocks": (_blocks, ("ingest",)),
    "export": (_export, ("ingest",)),
    "train_mode": (_train_mode, ("ingest",)),
    "gradients": (_gradients, ("train_mode",)),
    "again": (_again, ("export",)),
}
