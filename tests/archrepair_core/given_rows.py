"""Features that are simply there, for tests of what reads them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from archrepair_core.features import rounded


@dataclass(frozen=True, eq=False)
class GivenRows:
    """Rows [V, N, ...] from memory."""

    values_VN: Tensor

    @property
    def num_views(self) -> int:
        return len(self.values_VN)

    def __len__(self) -> int:
        return self.values_VN.shape[1]

    def read(self, views: np.ndarray, items: np.ndarray) -> Tensor:
        return rounded(self.values_VN[torch.from_numpy(views), torch.from_numpy(items)])
