"""Run a model in eval mode and give it back in exactly the mode it was in."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
