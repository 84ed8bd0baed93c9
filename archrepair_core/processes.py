"""Several processes on one repair (`torchrun`): each trains on its share of every batch, and all decide alike.

Every process runs the whole story on the same data and seed. What could make them differ, clocks and stopwatches above
all, is asked of process 0. Without `torchrun` all of this costs nothing.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from archrepair_core.features import Indices


@contextmanager
def joined_processes() -> Iterator[int]:
    """Join the processes that `torchrun` started, one per GPU where there are any; gives the number of this one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agreed(value: float) -> float:
    """What process 0 holds for it."""
    if num_processes() == 1:
        return value
    told = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(told, src=0)
    return float(told)


def clock() -> float:
    """`time.monotonic()` of process 0: whoever decides by time decides as the others do."""
    return agreed(time.monotonic())


def never() -> bool:
    """What nobody asked to stop."""
    return False


def is_over(deadline: float, stopped: Callable[[], bool]) -> bool:
    """Whether it is past `deadline`, in `clock()` seconds, or process 0 was asked to stop."""
    return bool(agreed(float(stopped() or time.monotonic() > deadline)))


def share_of(items: Indices) -> tuple[slice, float]:
    """Which part of a batch is this process's, and what its mean weighs in the mean over the whole batch.

    A batch too small to give everybody two (batch-norm cannot train on one) is everybody's.
    """
    processes = num_processes()
    if len(items) < 2 * processes:
        return slice(None), 1 / processes
    part = slice(dist.get_rank() if processes > 1 else 0, None, processes)
    return part, len(items[part]) / len(items)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message."""
    if num_processes() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat)
    for parameter, part in zip(trained, flat.split([part.numel() for part in parts]), strict=True):
        parameter.grad = part.view_as(parameter)


def summed(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if num_processes() > 1:
        dist.all_reduce(values)
    return values


def mean_of_all(values: Tensor) -> Tensor:
    """The mean over all processes; what is counted, not measured, stays."""
    processes = num_processes()
    return summed(values.clone()) / processes if processes > 1 and values.is_floating_point() else values


def normalize_together(norm: _BatchNorm, inputs_NC: Tensor) -> Tensor:
    """What `norm` in train mode makes of N inputs of C channels (and any number of positions), if those of all
    processes were one batch; for its running statistics too. `nn.SyncBatchNorm` does so on GPUs only.
    """
    if not norm.training:  # validation looks at the model between two steps
        return type(norm).forward(norm, inputs_NC)
    others = [axis for axis in range(inputs_NC.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(inputs_NC.dim())]
    values_NC = inputs_NC.to(torch.promote_types(inputs_NC.dtype, torch.float32))
    positions = values_NC.new_tensor([inputs_NC.numel() / inputs_NC.shape[1]])
    sums = differentiable.all_reduce(torch.cat([values_NC.sum(others), positions]))
    count = sums[-1]
    mean_C = sums[:-1] / count
    centered_NC = values_NC - mean_C.view(shape)
    variance_C = differentiable.all_reduce(centered_NC.square().sum(others)) / count
    if norm.num_batches_tracked is not None and norm.running_mean is not None and norm.running_var is not None:
        norm.num_batches_tracked += 1
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        unbiased_C = variance_C * count / (count - 1).clamp_min(1)
        norm.running_mean.lerp_(mean_C.detach().to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(unbiased_C.detach().to(norm.running_var.dtype), share)
    normal_NC = centered_NC * torch.rsqrt(variance_C + norm.eps).view(shape)
    if norm.affine:
        normal_NC = normal_NC * norm.weight.view(shape) + norm.bias.view(shape)
    return normal_NC.to(inputs_NC.dtype)


def seed_of_process(seed: int) -> int:
    """Dropout must not drop the same units in every process."""
    return int(np.random.SeedSequence([seed, dist.get_rank() if num_processes() > 1 else 0]).generate_state(1)[0])
