"""What a camera shows that hangs askew.

Legend: N images, H height, W width, C channels; float32 in 0–1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F


def turn(images: np.ndarray, degrees: float, _generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Turned about the centre, anticlockwise as shown, by linear interpolation; what was outside repeats the border."""
    height, width = images.shape[1:3]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # From where in the old picture each place of the new one comes; a unit is half of the edge, so edges may differ.
    source = torch.tensor([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
    pixels_NCHW = torch.from_numpy(images).permute(0, 3, 1, 2)
    grid = F.affine_grid(source.expand(len(images), 2, 3), list(pixels_NCHW.shape), align_corners=False)
    turned = F.grid_sample(pixels_NCHW, grid, align_corners=False, padding_mode="border")
    return turned.permute(0, 2, 3, 1).contiguous().numpy()
