"""Which modules of a model are in train mode, and what its batch-norms make of what they see."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from archrepair_core.processes import normalize_together, num_processes
from archrepair_core.scope import Scope, in_scope


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, every module of `model` is in eval mode; afterwards each has its own train/eval flag back.

    `model.train(was_training)` would not do: it overwrites the flags of batch-norms frozen one by one.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


class training_mode:
    """Modules of the scope in train mode, but batch-norms with statistics of their own; all in eval mode afterwards."""

    def __init__(self, model: nn.Module, scope: Scope) -> None:
        self.model, self.scope = model, scope
        self.momenta: dict[_BatchNorm, float | None] = {}

    def __enter__(self) -> "training_mode":
        self.turn_on()
        return self

    def turn_on(self) -> None:
        """Again too, after a look in eval mode."""
        for name, module in self.model.named_modules():
            is_norm = isinstance(module, _BatchNorm)
            has_statistics = is_norm and ".branch." not in f".{name}."
            module.training = in_scope(name, self.scope) and not has_statistics
            if is_norm and module.training:
                self.momenta[module] = module.momentum
                if num_processes() > 1:
                    module.forward = partial(normalize_together, module)

    def take_means(self, *, step: int) -> None:
        """Have each new batch-norm know the mean over its batches, as long as they are fewer than it averages over."""
        for norm, momentum in self.momenta.items():
            norm.momentum = None if momentum is None else max(momentum, 1 / (step + 1))

    def __exit__(self, *_exc: object) -> None:
        self.model.eval()
        for norm, momentum in self.momenta.items():
            norm.momentum = momentum
            vars(norm).pop("forward", None)
