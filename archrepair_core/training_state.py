"""What changes from step to step of a training, and how it goes to a checkpoint and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from archrepair_core.checkpoint import Checkpoint, Saved


@dataclass
class Average:
    """The uniform average of what `live` was each time `add` was called; what it was in the beginning until then."""

    live: Mapping[str, Tensor]
    count: int = 0
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.state = {name: value.detach().clone() for name, value in self.live.items()}
        floating = [name for name, value in self.live.items() if value.is_floating_point()]
        self._averaged = [self.state[name] for name in floating]
        self._floating = [self.live[name].detach() for name in floating]
        self._counters = [name for name in self.live if name not in floating]

    def add(self) -> None:
        """Take `live` in as it is now."""
        self.count += 1
        if self._averaged:
            torch._foreach_lerp_(self._averaged, self._floating, 1 / self.count)
        for name in self._counters:
            self.state[name].copy_(self.live[name])


@dataclass
class TrainingState:
    """Everything that changes; `live` are the tensors being trained, `carried` others that change in place.

    `losses` may still be on their device.
    """

    live: Mapping[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    device: torch.device
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    average: Average = field(init=False)
    losses: list[Tensor | float] = field(default_factory=list)
    step: int = 0
    seconds_before: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_score: float = -math.inf
    looks_since_best: int = 0

    def __post_init__(self) -> None:
        self.average = Average(self.live)

    def seen_losses(self) -> list[float]:
        """The loss of every step; on a GPU this waits for them."""
        seen = [float(loss) for loss in self.losses]
        self.losses = list(seen)
        return seen

    def judge(self, score: float, standard_error: float) -> None:
        """Take in what validation said of the average: it is kept unless an earlier one was better beyond chance.

        The later one has learned more; the best of many looks would be the luckiest.
        """
        self.looks_since_best += 1
        if score > self.best_score - standard_error:
            self.best = {name: value.clone() for name, value in self.average.state.items()}
            self.looks_since_best = 0
        self.best_score = max(self.best_score, score)

    def leave(self, checkpoint: Checkpoint, meta: Mapping[str, Any], *, seconds: float) -> None:
        """Write all of it."""
        tensors = {f"live.{name}": value for name, value in self.live.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"carried.{name}": value for name, value in self.carried.items()}
        tensors |= {f"chance.{name}": state for name, state in _chance(self.device).items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{name}": v for name, v in values.items() if v is not None}
        progress: dict[str, Any] = {"step": self.step, "averaged": self.average.count, "losses": self.seen_losses()}
        progress |= {"best_score": self.best_score, "looks_since_best": self.looks_since_best}
        checkpoint.write(tensors, {**meta, **progress, "seconds": self.seconds_before + seconds})

    def restore_(self, saved: Saved) -> None:
        """Be as `saved` says, bit for bit."""
        with torch.no_grad():
            for name, value in self.live.items():
                value.copy_(saved.tensors[f"live.{name}"])
                self.average.state[name].copy_(saved.tensors[f"average.{name}"])
            for name, value in self.carried.items():
                value.copy_(saved.tensors[f"carried.{name}"])
        for number, optimizer in enumerate(self.optimizers):
            kept: dict[int, dict[str, Tensor]] = {}
            for name, value in saved.tensors.items():
                if name.startswith(f"optimizer.{number}."):
                    index, slot = name.split(".")[2:]
                    kept.setdefault(int(index), {})[slot] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})
        torch.set_rng_state(saved.tensors["chance.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.tensors["chance.cuda"], self.device)
        self.step, self.losses = saved.meta["step"], list(saved.meta["losses"])
        self.best = {name: saved.tensors[f"best.{name}"] for name in self.live if f"best.{name}" in saved.tensors}
        self.best_score, self.looks_since_best = saved.meta["best_score"], saved.meta["looks_since_best"]
        self.average.count, self.seconds_before = saved.meta["averaged"], saved.meta["seconds"]


def _chance(device: torch.device) -> dict[str, Tensor]:
    cpu = {"cpu": torch.get_rng_state()}
    return cpu | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else cpu
