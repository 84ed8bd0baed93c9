"""Proof that a rebuilt model is the archive: same answers, same names, and every parameter can be trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.graphs import method_names
from archrepair_core.ingest.outputs import largest_difference, largest_relative_difference, tensors_in
from archrepair_core.ingest.tensors import TensorCopies, return_freed_memory, same_bits
from archrepair_core.modes import eval_mode

_TOLERANCE = 1e-5
_HINT = "report the model's architecture; until then, export it by tracing instead of scripting, or the other way round"
# What running somebody's network, or source generated from it, can raise.
RUN_ERRORS = (
    torch.jit.Error,
    RuntimeError,
    TypeError,
    ValueError,
    NameError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
)


@dataclass(frozen=True)
class Parity:
    """How alike archive and rebuilt model are; `untrained` parameters take no part in the archive's answers either."""

    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    num_state_entries: int
    num_trainable: int
    untrained: tuple[str, ...]


def verify_decompiled(root: nn.Module, module: nn.Module, inputs: Tensor) -> Parity:
    """Compare `module` with its archive in eval mode on `inputs` (batch first), whole and the first item alone.

    Both are left as they were. Raises ModelError: `not_reproducible`, naming the first submodule that differs, or
    `fails_on_inputs` where the archive itself cannot run.
    """
    _check_tensors(root, module)
    with _undisturbed(root), _undisturbed(module), _sharing_tensors(root, module):
        batches = _batches(root, inputs)
        differences = [_compare(root, module, batch) for batch in batches]
        untrained = _untrained(root, module, batches[0])
    return Parity(
        batch_sizes=tuple(len(batch) for batch in batches),
        max_abs_diff=max(differences),
        num_state_entries=len(module.state_dict()),
        num_trainable=sum(parameter.requires_grad for parameter in module.parameters()),
        untrained=untrained,
    )


def _check_tensors(root: nn.Module, module: nn.Module) -> None:
    expected, found = root.state_dict(), module.state_dict()
    if expected.keys() != found.keys():
        lacks, adds = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise _unlike(f"the rebuilt model's state_dict lacks {lacks} and adds {adds}")
    changed = [name for name, tensor in expected.items() if not same_bits(tensor, found[name])]
    if changed:
        raise _unlike(f"{len(changed)} tensors of the rebuilt model are not the archive's, among them {changed[0]!r}")


def _unlike(detail: str) -> ModelError:
    return ModelError("not_reproducible", detail, hint=_HINT)


@contextmanager
def _sharing_tensors(root: nn.Module, module: nn.Module) -> Iterator[None]:
    """Both models on one set of weights, known to be equal: activations take the room of the second meanwhile."""
    ours = dict(_named_tensors(module))
    shared = [(tensor, ours[name]) for name, tensor in _named_tensors(root) if name in ours]
    for theirs, our in shared:
        theirs.data = our.data
    return_freed_memory()
    try:
        yield
    finally:
        return_freed_memory()
        copies = TensorCopies()
        for theirs, _ in shared:
            theirs.data = copies.tensor(theirs)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; buffers, gradients and random numbers afterwards as before."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        with torch.random.fork_rng(devices=[]), eval_mode(module):
            yield
    finally:
        for buffer, before in buffers:
            buffer.detach().copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _batches(root: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Two batch sizes, the smaller first: one item, or half of them where the archive refuses a batch of one."""
    if len(inputs) < 2:
        return [inputs]
    half = len(inputs) // 2
    # Batch-norm traced in train mode needs several items. What else is wrong, `_compare` will tell.
    return [inputs[: half if half > 1 and not _answers(root, inputs[:1]) else 1], inputs]


def _answers(root: nn.Module, batch: Tensor) -> bool:
    try:
        with torch.no_grad():
            _seeded(root, batch)
    except RUN_ERRORS:
        return False
    return True


def _compare(root: nn.Module, module: nn.Module, batch: Tensor) -> float:
    with torch.no_grad():
        expected = _run_archive(root, batch)
        answer, error = _run_rebuilt(module, batch)
        if error is None and largest_relative_difference(answer, expected) <= _TOLERANCE:
            return largest_difference(answer, expected)
        raise _not_reproducible(root, module, batch) from error


def _run_archive(root: nn.Module, batch: Tensor) -> Any:
    try:
        return _seeded(root, batch)
    except RUN_ERRORS as error:
        raise ModelError(
            "fails_on_inputs",
            f"the model cannot run on inputs of shape {list(batch.shape)}: {_last_line(error)}",
            hint="check the preprocessing; a model traced with a fixed batch size must be traced with another one",
        ) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _run_rebuilt(module: nn.Module, batch: Tensor) -> tuple[Any, Exception | None]:
    try:
        return _seeded(module, batch), None
    except RUN_ERRORS as error:
        return None, error


def _seeded(run: Callable[..., Any], *arguments: Any) -> Any:
    # Some archives draw random numbers even in eval mode; from the same seed they draw the same.
    torch.manual_seed(0)
    return run(*arguments)


def _not_reproducible(root: nn.Module, module: nn.Module, batch: Tensor) -> ModelError:
    path, problem = _culprit(root, module, batch)
    where = f"submodule {path!r}" if path else "the model's own forward"
    return _unlike(f"the rebuilt model does not answer as the archive does: {where} {problem}")


def _culprit(root: nn.Module, module: nn.Module, batch: Tensor) -> tuple[str, str]:
    """The innermost module to answer unlike its ScriptModule on the same inputs, and how; "" for the model itself."""
    found: list[tuple[str, str]] = []
    pending: dict[str, tuple[Any, ...]] = {}

    def before(path: str) -> Callable[..., None]:
        return lambda _, arguments: pending.update({path: _copied(arguments)})

    def after(path: str) -> Callable[..., None]:
        def compare(_: nn.Module, __: Any, answer: Any) -> None:
            difference = _difference_to_twin(root, path, pending.pop(path), answer)
            if difference > 0 and not found:
                found.append((path, f"differs first, by {difference:.3g}"))

        return compare

    children = [(path, child) for path, child in module.named_modules() if path]
    hooks = [child.register_forward_pre_hook(before(path)) for path, child in children]
    hooks += [child.register_forward_hook(after(path)) for path, child in children]
    try:
        _, error = _run_rebuilt(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return found[0]
    # Left over in `pending` are modules that were entered and never came back, the innermost of them last.
    problem = f"fails: {type(error).__name__}: {_last_line(error)}" if error else "differs"
    return next(reversed(pending), ""), problem


def _copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    # In-place layers overwrite what they are given.
    return tuple(item.clone() if isinstance(item, Tensor) else item for item in arguments)


def _difference_to_twin(root: nn.Module, path: str, arguments: tuple[Any, ...], answer: Any) -> float:
    twin: Any = root
    if not isinstance(root, torch.jit.ScriptModule):
        # The modules of a .pt2 file only hold tensors: nothing below the whole program can be called.
        return 0.0
    for child in path.split("."):
        twin = twin._modules[child]
    forward = next((name for name in method_names(twin) if name.startswith("forward")), None)
    if forward is None:
        return 0.0
    try:
        expected = twin(*arguments) if forward == "forward" else getattr(twin, forward)(*arguments)
    except RUN_ERRORS:
        return float("inf")
    scaled = largest_relative_difference(answer, expected)
    return largest_difference(answer, expected) if scaled > _TOLERANCE else 0.0


def _untrained(root: nn.Module, module: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    try:
        missing = _without_gradient(module, inputs)
    except RuntimeError as error:
        raise ModelError(
            "not_trainable",
            f"no gradient flows through the model: {_last_line(error)}",
            hint="save it outside torch.no_grad() and inference_mode(): they bake in operators without derivative",
        ) from error
    if not missing:
        return ()
    # Heads that only training uses get none in the archive either.
    lost = missing - _without_gradient(root, inputs)
    if lost:
        raise _unlike(f"{len(lost)} parameters lost their gradient, among them {min(lost)!r}")
    return tuple(sorted(missing))


def _without_gradient(module: nn.Module, inputs: Tensor) -> set[str]:
    missing = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for parameter in missing.values():
        parameter.grad = None
    # Each gradient is dropped as soon as it is there: together they would take as much memory as the weights.
    hooks = [parameter.register_post_accumulate_grad_hook(_note(missing, name)) for name, parameter in missing.items()]
    try:
        with torch.enable_grad():
            answers = [tensor for tensor in tensors_in(_seeded(module, inputs)).values() if tensor.requires_grad]
            if answers:
                torch.stack([answer.sum() for answer in answers]).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return set(missing)


def _note(missing: dict[str, nn.Parameter], name: str) -> Callable[[Tensor], None]:
    def forget(parameter: Tensor) -> None:
        parameter.grad = None
        missing.pop(name, None)

    return forget
