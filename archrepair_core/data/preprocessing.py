"""From stored pixels to the model's input: colour, resize, scale, normalise.

Legend: B images, H height, W width, C channels. Bytes are 0–255; floats are taken as they are and never rescaled.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from archrepair_core.data.images import LabelledImages
from archrepair_core.errors import DatasetError
from archrepair_core.spec import Preprocessing

# (channels stored, colour asked) → channels given to the model; any other pair cannot be converted.
CHANNELS_AFTER = {(1, "rgb"): 3, (3, "rgb"): 3, (1, "bgr"): 3, (3, "bgr"): 3, (1, "grey"): 1, (3, "grey"): 1}
SCALE_LIMITS = {"0-1": 1.0, "0-255": 255.0}


def resolve_preprocessing(preprocessing: Preprocessing, dataset: LabelledImages) -> Preprocessing:
    """What every `auto` becomes for this dataset: colour by its channels, `0-1` for bytes.

    Float images keep `scale="auto"`, which leaves them unchanged, and images with neither 1 nor 3 channels keep
    `color="auto"`. Raises DatasetError when mean and std do not have one number per channel.
    """
    channels = dataset.images.shape[3]
    color = {1: "grey", 3: "rgb"}.get(channels, "auto") if preprocessing.color == "auto" else preprocessing.color
    is_bytes = dataset.images.dtype == np.uint8
    scale = "0-1" if preprocessing.scale == "auto" and is_bytes else preprocessing.scale
    resolved = preprocessing.model_copy(update={"color": color, "scale": scale})
    to_tensor(dataset.images[:1], resolved)  # what cannot be converted fails here, before any work is done
    return resolved


def to_tensor(images_BHWC: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Images (uint8 or float32, B×H×W×C) as the model's input: float32, B×C×H×W.

    Bytes are resized as bytes, the way Pillow does. Raises DatasetError when channels, range or mean do not fit.
    """
    x_BCHW = torch.from_numpy(np.array(images_BHWC)).permute(0, 3, 1, 2)
    x_BCHW = _convert_color(x_BCHW, preprocessing.color)
    if preprocessing.resize and list(x_BCHW.shape[2:]) != preprocessing.resize:
        x_BCHW = transforms.resize(x_BCHW, preprocessing.resize, antialias=True)
    return normalize(_scale(x_BCHW, preprocessing.scale).contiguous(), preprocessing)


def to_pixels(images_BHWC: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """As `to_tensor`, but for `normalize`: what can be changed as an image before it is the model's input."""
    return to_tensor(images_BHWC, preprocessing.model_copy(update={"mean": None, "std": None}))


def _convert_color(x_BCHW: Tensor, color: str) -> Tensor:
    channels = x_BCHW.shape[1]
    if color == "auto":
        return x_BCHW
    if (channels, color) not in CHANNELS_AFTER:
        raise DatasetError(
            "color_not_convertible",
            f"images of {channels} channels cannot become {color!r}",
            hint="send images with 1 or 3 channels, or set preprocessing.color to 'auto'",
        )
    wanted = CHANNELS_AFTER[channels, color]
    if wanted == channels:
        return x_BCHW.flip(1) if color == "bgr" else x_BCHW
    return transforms.rgb_to_grayscale(x_BCHW) if wanted == 1 else x_BCHW.expand(-1, 3, -1, -1)


def _scale(x_BCHW: Tensor, scale: str) -> Tensor:
    if x_BCHW.dtype == torch.uint8:
        return x_BCHW.float() if scale == "0-255" else x_BCHW.float() / 255
    limit = SCALE_LIMITS.get(scale)
    # A resize without clipping may overshoot by rounding, hence the tolerance.
    if limit is not None and (x_BCHW.min() < -1e-3 * limit or x_BCHW.max() > 1.001 * limit):
        raise DatasetError(
            "scale_mismatch",
            f"float images hold values from {x_BCHW.min():.4g} to {x_BCHW.max():.4g}, "
            f"but preprocessing.scale says {scale}",
            hint="float images are not rescaled: send them in that range, send uint8, or use 'auto'",
        )
    return x_BCHW


def normalize(x_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Less the mean and divided by the standard deviation, where there are any."""
    if preprocessing.mean is None or preprocessing.std is None:
        return x_BCHW
    if len(preprocessing.mean) != x_BCHW.shape[1]:
        raise DatasetError(
            "channel_mismatch",
            f"preprocessing.mean has {len(preprocessing.mean)} numbers, but the "
            f"images have {x_BCHW.shape[1]} channels after color={preprocessing.color!r}",
            hint="give one mean and std per channel, or set preprocessing.color to 'rgb' or 'grey'",
        )
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (x_BCHW - mean) / std
