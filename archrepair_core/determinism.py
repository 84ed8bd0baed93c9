"""One seed for every source of chance."""

import random

import numpy as np
import torch


def fix_seeds(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask cuDNN for its repeatable kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
