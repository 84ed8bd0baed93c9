"""What a method changes about what is learned, and how, while one model trains."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from archrepair_core.features import Features
from archrepair_core.training import TrainingPlan

Tail = Callable[[Tensor], Tensor]
# From the model, what runs behind its cut, and the features and plan of any other training, to those of this one.
Lesson = Callable[[nn.Module, Tail, Features, TrainingPlan], AbstractContextManager[tuple[Features, TrainingPlan]]]


def as_it_is(
    _model: nn.Module, _tail: Tail, features: Features, plan: TrainingPlan
) -> AbstractContextManager[tuple[Features, TrainingPlan]]:
    """The lesson of every method that only chooses what to train."""
    return nullcontext((features, plan))
