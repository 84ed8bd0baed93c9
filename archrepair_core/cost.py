"""What a model costs: multiply-adds from shapes, seconds from a clock."""

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from archrepair_core.modes import eval_mode


def count_macs(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Multiply-adds of one image, by qualified module name; `""` is the whole model, 0 is never reached.

    Convolutions, linear layers, matrix products and attention count; elementwise work, pooling and
    normalisation do not, as is the custom. Measured on the first item of `inputs` in eval mode.
    """
    counter = FlopCounterMode(display=False)
    with eval_mode(model), torch.no_grad(), _attention_in_the_open(), counter:
        model(inputs[:1].clone())
    flops = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    root = type(model).__name__  # the counter writes `ResNet.layer1` where we write `layer1`
    macs = {name: flops.get(f"{root}.{name}", 0) // 2 for name, _ in model.named_modules() if name}
    return {"": flops.get("Global", 0) // 2, **macs}


@contextmanager
def _attention_in_the_open() -> Iterator[None]:
    """Spell attention out as matrix products: the counter takes the fused CPU and inference kernels to be free."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def measure_latency(model: nn.Module, inputs: Tensor, *, repeats: int = 5) -> float:
    """Median seconds of one forward over the batch `inputs`, eval mode, after one warm-up run."""
    with eval_mode(model), torch.no_grad():
        _forward_seconds(model, inputs)
        return statistics.median(_forward_seconds(model, inputs) for _ in range(repeats))


def latency_ratio(before: nn.Module, after: nn.Module, inputs: Tensor, *, repeats: int = 7) -> float:
    """How much slower `after` is than `before` (1.2 = 20 % slower), median over pairs run one after the other.

    Neighbours in time share the machine's load, so a busy machine moves both and the ratio stays.
    """
    with eval_mode(before), eval_mode(after), torch.no_grad():
        _forward_seconds(before, inputs), _forward_seconds(after, inputs)
        pairs = [_interleaved_pair(before, after, inputs, swapped=bool(turn % 2)) for turn in range(repeats)]
    return statistics.median(after_seconds / before_seconds for before_seconds, after_seconds in pairs)


def latency_shares(model: nn.Module, inputs: Tensor, names: Iterable[str], *, repeats: int = 3) -> dict[str, float]:
    """Share of the forward's time spent inside each named module, 0–1, median over `repeats` runs."""
    spent: dict[str, list[float]] = {name: [] for name in names}
    totals: list[float] = []
    with eval_mode(model), torch.no_grad(), _clocks(model, spent):
        for _ in range(repeats + 1):
            totals.append(_forward_seconds(model, inputs))
    return {
        name: statistics.median(inside / total for inside, total in zip(runs[1:], totals[1:], strict=True))
        for name, runs in spent.items()
    }


@contextmanager
def _clocks(model: nn.Module, spent: dict[str, list[float]]) -> Iterator[None]:
    """Append to `spent[name]` the seconds each call of that module takes."""
    started: dict[nn.Module, float] = {}
    names = {model.get_submodule(name): name for name in spent}

    def start(module: nn.Module, args: tuple[Tensor]) -> None:
        _synchronize(args[0])
        started[module] = time.perf_counter()

    def stop(module: nn.Module, args: tuple[Tensor], _output: object) -> None:
        _synchronize(args[0])
        spent[names[module]].append(time.perf_counter() - started[module])

    handles = [module.register_forward_pre_hook(start) for module in names]
    handles += [module.register_forward_hook(stop) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _interleaved_pair(before: nn.Module, after: nn.Module, inputs: Tensor, *, swapped: bool) -> tuple[float, float]:
    """(before, after) seconds; every other pair runs in the other order, so that going first favours nobody."""
    if swapped:
        after_seconds = _forward_seconds(after, inputs)
        return _forward_seconds(before, inputs), after_seconds
    return _forward_seconds(before, inputs), _forward_seconds(after, inputs)


def _forward_seconds(model: nn.Module, inputs: Tensor) -> float:
    batch = inputs.clone()  # a model that normalises its input in place must not wear the caller's away
    _synchronize(batch)
    started = time.perf_counter()
    model(batch)
    _synchronize(batch)
    return time.perf_counter() - started


def _synchronize(tensor: Tensor) -> None:
    """Accelerators run behind the clock: wait for them."""
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize(tensor.device)
