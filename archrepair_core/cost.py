"""What a model costs: multiply-adds from shapes, seconds from a clock."""

import statistics
import time
from collections import defaultdict
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
    # With gradients: without, the counter stumbles over modules that are given a parameter.
    with eval_mode(model), torch.enable_grad(), _attention_in_the_open(), counter:
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


def latency_ratio(before: nn.Module, after: nn.Module, inputs: Tensor, *, repeats: int = 7) -> float:
    """How much slower `after` is than `before` (1.2 = 20 % slower), median over pairs run one after the other.

    Neighbours in time share the machine's load, so a busy machine moves both and the ratio stays.
    """
    with eval_mode(before), eval_mode(after), torch.no_grad():
        _forward_seconds(before, inputs), _forward_seconds(after, inputs)
        pairs = [_interleaved_pair(before, after, inputs, swapped=bool(turn % 2)) for turn in range(repeats)]
    return statistics.median(after_seconds / before_seconds for before_seconds, after_seconds in pairs)


def latency_seconds(model: nn.Module, inputs: Tensor, *, repeats: int = 7) -> float:
    """Seconds of one forward over the batch, median of several after a first that does not count."""
    with eval_mode(model), torch.no_grad():
        _forward_seconds(model, inputs)
        return statistics.median(_forward_seconds(model, inputs) for _ in range(repeats))


def latency_shares(model: nn.Module, inputs: Tensor, names: Iterable[str], *, repeats: int = 3) -> dict[str, float]:
    """Share of the forward's time spent inside each named module, 0–1, median over `repeats` runs."""
    shares: dict[str, list[float]] = {name: [] for name in names}
    with eval_mode(model), torch.no_grad(), _clocks(model, shares) as spent:
        for _ in range(repeats + 1):
            spent.clear()
            total = _forward_seconds(model, inputs)
            for name, runs in shares.items():
                runs.append(spent[name] / total)
    return {name: statistics.median(runs[1:]) for name, runs in shares.items()}


@contextmanager
def _clocks(model: nn.Module, names: Iterable[str]) -> Iterator[defaultdict[str, float]]:
    """The seconds spent in each module so far, over all its calls."""
    spent: defaultdict[str, float] = defaultdict(float)
    started: dict[str, float] = {}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def watch(name: str) -> list[torch.utils.hooks.RemovableHandle]:
        def start(_module: nn.Module, _args: tuple[object, ...]) -> None:
            _synchronize(device)
            started[name] = time.perf_counter()

        def stop(_module: nn.Module, _args: tuple[object, ...], _output: object) -> None:
            _synchronize(device)
            spent[name] += time.perf_counter() - started[name]

        module = model.get_submodule(name)
        return [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]

    handles = [handle for name in names for handle in watch(name)]
    try:
        yield spent
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
    _synchronize(batch.device)
    started = time.perf_counter()
    model(batch)
    _synchronize(batch.device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    """Accelerators run behind the clock: wait for them."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
