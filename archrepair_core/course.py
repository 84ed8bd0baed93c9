"""How many steps a training takes, and how its learning rate begins: by passes, or by the time there is."""

import math
from dataclasses import dataclass

from archrepair_core.processes import agreed, clock

# The rate rises over this share of the run and then stays, so that the average covers many good points.
WARM_UP_SHARE = 0.15
MAX_EPOCHS = 40
# Validation looks after every epoch; training ends when so many looks (a share of the epochs) were worse.
MIN_PATIENCE, PATIENCE_SHARE = 4, 0.25


@dataclass
class Course:
    """How many passes a training makes, and how it warms up.

    Where the deadline says how many, that is guessed from a few tried steps, and again at the step `guess_again_at`,
    which then is twice as far: a program beside it that took the processor in that second ended a training after half
    of its time, and steps get faster as what they read has been computed before.
    """

    steps_per_epoch: int
    epochs: float
    warm_up_steps: float
    guess_again_at: float = math.inf

    @staticmethod
    def of(epochs: float, *, steps_per_epoch: int) -> "Course":
        """One that warms up over the first part."""
        return Course(steps_per_epoch, epochs, WARM_UP_SHARE * epochs * steps_per_epoch)

    @staticmethod
    def until(deadline: float, *, steps_per_epoch: int, seconds_per_step: float) -> "Course":
        """Whole passes, as many as seem to fit, rounded up: the deadline, in `clock()` seconds, ends the last one."""
        epochs = math.ceil(_steps_until(deadline, seconds_per_step) / steps_per_epoch)
        course = Course.of(min(max(1, epochs), MAX_EPOCHS), steps_per_epoch=steps_per_epoch)
        course.guess_again_at = course.warm_up_steps
        return course

    @property
    def total_steps(self) -> int:
        """How many there are to do."""
        return math.ceil(self.epochs * self.steps_per_epoch)

    @property
    def patience(self) -> int:
        """After how many worse looks training ends."""
        return max(MIN_PATIENCE, round(PATIENCE_SHARE * self.epochs))

    def share_of_rate(self, step: int) -> float:
        """Of the full learning rate: from a tenth up to all of it."""
        return min(1.0, 0.1 + 0.9 * step / self.warm_up_steps)

    def end_at(self, deadline: float, *, step: int, seconds_per_step: float) -> None:
        """Let the steps from this one on fill the time that is left, in `clock()` seconds."""
        self.epochs = min(
            (step + max(1.0, _steps_until(deadline, seconds_per_step))) / self.steps_per_epoch, MAX_EPOCHS
        )
        self.guess_again_at = 2 * step


def _steps_until(deadline: float, seconds_per_step: float) -> float:
    return (deadline - clock()) / agreed(seconds_per_step)
