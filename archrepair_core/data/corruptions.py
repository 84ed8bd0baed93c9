"""What the world does to images: the fifteen common corruptions and a few more, each with one continuous parameter.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
Severities are those of CIFAR-10-C for images of at most 64 pixels and those of ImageNet-C, with lengths
scaled from 224 pixels, for larger ones. The frost is drawn: the original mixes in photographs.

Legend: N images, H height, W width, C channels (1 or 3); amounts are float32 in 0–1 unless said otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from archrepair_core.data import blurs, pose, weather
from archrepair_core.errors import DatasetError

SEVERITIES = (1, 2, 3, 4, 5)
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Generators = Sequence[np.random.Generator]
Change = Callable[[np.ndarray, float, Generators], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """How a corruption is applied, what its parameter means, its values at severities 1–5, and its range.

    `in_steps` parameters are whole numbers. A kind whose severities are empty has no place in the benchmark.
    """

    apply: Change
    unit: str
    small: tuple[float, ...]
    large: tuple[float, ...]
    limits: tuple[float, float]
    in_steps: bool = False

    def severities(self, edge: int) -> tuple[float, ...]:
        """The parameters at severities 1–5 for images whose shorter edge is `edge` pixels."""
        return self.small if edge <= blurs.SMALL_EDGE else self.large


@dataclass(frozen=True)
class Corruption:
    """A PixelChange: one kind at one parameter. `full_scale` is the value of white: 255 for bytes, 1 for 0–1 floats."""

    kind: str
    parameter: float
    full_scale: float = 255.0

    def __call__(self, images_NHWC: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Corrupted copies, same shape and dtype; an image's result depends on its seed alone."""
        if images_NHWC.shape[3] not in (1, 3):
            raise DatasetError(
                "channels_not_corruptible",
                f"{self.kind} is defined for images of 1 or 3 channels, these have {images_NHWC.shape[3]}",
                hint="set repair.augment to a policy that only moves pixels, such as flip",
            )
        images = np.clip(images_NHWC.astype(np.float32) / self.full_scale, 0, 1)
        generators = [np.random.default_rng(seed) for seed in seeds]
        changed = np.clip(KINDS[self.kind].apply(images, self.parameter, generators), 0, 1) * self.full_scale
        return (np.rint(changed) if images_NHWC.dtype == np.uint8 else changed).astype(images_NHWC.dtype)

    def describe(self) -> str:
        """Kind, unit and parameter in words."""
        return f"{self.kind} ({KINDS[self.kind].unit} {self.parameter:.3g})"


def at_severity(kind: str, severity: int, edge: int, *, full_scale: float = 255.0) -> Corruption:
    """The benchmark's corruption for images whose shorter edge is `edge` pixels; `severity` is 1–5."""
    return Corruption(kind, KINDS[kind].severities(edge)[severity - 1], full_scale)


def _draw(generators: Generators, sample: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
    return np.stack([sample(generator) for generator in generators])


def _gaussian_noise(images: np.ndarray, sd: float, generators: Generators) -> np.ndarray:
    noise = _draw(generators, lambda generator: generator.standard_normal(images.shape[1:], dtype=np.float32))
    return images + sd * noise


def _shot_noise(images: np.ndarray, noise: float, generators: Generators) -> np.ndarray:
    """`noise` is one over the number of photons that make white."""
    counts = [generator.poisson(image / noise) for image, generator in zip(images, generators, strict=True)]
    return np.stack(counts).astype(np.float32) * noise


def _impulse_noise(images: np.ndarray, share: float, generators: Generators) -> np.ndarray:
    drawn = _draw(generators, lambda generator: generator.random(images.shape[1:], dtype=np.float32))
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, images)).astype(np.float32)


def _brightness(images: np.ndarray, added: float, _generators: Generators) -> np.ndarray:
    """Added to the V of HSV: hue and saturation stay."""
    value = images.max(3, keepdims=True)
    changed = np.clip(value + added, 0, 1)
    return np.where(value > 0, images * (changed / np.maximum(value, 1e-6)), changed)


def _contrast(images: np.ndarray, gain: float, _generators: Generators) -> np.ndarray:
    mean = images.mean((1, 2), keepdims=True)
    return (images - mean) * gain + mean


def _gamma(images: np.ndarray, gamma: float, _generators: Generators) -> np.ndarray:
    return images**gamma


def _exposure(images: np.ndarray, gain: float, _generators: Generators) -> np.ndarray:
    return images * gain


def _saturation(images: np.ndarray, gain: float, _generators: Generators) -> np.ndarray:
    if images.shape[3] == 1:
        return images
    grey = (images @ LUMA)[..., None]
    return grey + gain * (images - grey)


def _warmth(images: np.ndarray, gain: float, _generators: Generators) -> np.ndarray:
    """Red is amplified by `gain` and blue divided by it: a white balance gone wrong."""
    if images.shape[3] == 1:
        return images
    return images * np.array([gain, 1.0, 1.0 / gain], dtype=np.float32)


def _each_as_picture(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Through Pillow, as bytes: these faults happen to stored pictures."""
    pixels = np.rint(images * 255).astype(np.uint8)
    grey = images.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(image[..., 0] if grey else image))) for image in pixels]
    return np.stack(changed).reshape(images.shape).astype(np.float32) / 255


def _jpeg_compression(images: np.ndarray, quality: float, _generators: Generators) -> np.ndarray:
    def change(picture: Image.Image) -> Image.Image:
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=round(quality))
        return Image.open(buffer)

    return _each_as_picture(images, change)


def _down_and_up(down: Image.Resampling, up: Image.Resampling) -> Change:
    def apply(images: np.ndarray, share: float, _generators: Generators) -> np.ndarray:
        height, width = images.shape[1:3]
        smaller = (max(1, int(width * share)), max(1, int(height * share)))
        return _each_as_picture(images, lambda picture: picture.resize(smaller, down).resize((width, height), up))

    return apply


_BY_SEVERITY = (1.0, 2.0, 3.0, 4.0, 5.0)
_SEVERITY_RANGE = (1.0, 5.0)
# Blocks are visible as blocks where an image is large; the small benchmark enlarges with the box filter.
_PIXELATE = _down_and_up(Image.Resampling.BOX, Image.Resampling.BOX)
_RESAMPLE = _down_and_up(Image.Resampling.BILINEAR, Image.Resampling.BILINEAR)

KINDS: dict[str, Kind] = {
    "gaussian_noise": Kind(
        _gaussian_noise, "sd", (0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38), (0.005, 0.6)
    ),
    "shot_noise": Kind(
        _shot_noise,
        "1/photons",
        (1 / 500, 1 / 250, 1 / 100, 1 / 75, 1 / 50),
        (1 / 60, 1 / 25, 1 / 12, 0.2, 1 / 3),
        (5e-4, 0.5),
    ),
    "impulse_noise": Kind(
        _impulse_noise, "share", (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27), (0.002, 0.5)
    ),
    "defocus_blur": Kind(blurs.defocus, "severity", _BY_SEVERITY, _BY_SEVERITY, _SEVERITY_RANGE),
    "glass_blur": Kind(blurs.glass, "severity", _BY_SEVERITY, _BY_SEVERITY, _SEVERITY_RANGE),
    "motion_blur": Kind(blurs.motion, "severity", _BY_SEVERITY, _BY_SEVERITY, _SEVERITY_RANGE),
    "zoom_blur": Kind(blurs.zoom, "zoom", (1.05, 1.1, 1.15, 1.2, 1.25), (1.1, 1.15, 1.2, 1.25, 1.3), (1.01, 1.5)),
    "snow": Kind(weather.snow, "severity", _BY_SEVERITY, _BY_SEVERITY, _SEVERITY_RANGE),
    "frost": Kind(weather.frost, "severity", _BY_SEVERITY, _BY_SEVERITY, _SEVERITY_RANGE),
    "fog": Kind(weather.fog, "severity", _BY_SEVERITY, _BY_SEVERITY, _SEVERITY_RANGE),
    "brightness": Kind(_brightness, "added", (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), (-0.6, 0.6)),
    "contrast": Kind(_contrast, "gain", (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), (0.02, 2.0)),
    "elastic_transform": Kind(blurs.elastic, "severity", _BY_SEVERITY, _BY_SEVERITY, _SEVERITY_RANGE),
    "pixelate": Kind(
        _PIXELATE, "share of edge", (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25), (0.1, 0.97)
    ),
    "jpeg_compression": Kind(
        _jpeg_compression, "quality", (80, 65, 58, 50, 40), (25, 18, 15, 10, 7), (3, 97), in_steps=True
    ),
    "gaussian_blur": Kind(blurs.gaussian, "sigma in pixels", (), (), (0.4, 12.0)),
    "resample": Kind(_RESAMPLE, "share of edge", (), (), (0.1, 0.97)),
    "gamma": Kind(_gamma, "gamma", (), (), (0.2, 4.0)),
    "exposure": Kind(_exposure, "gain", (), (), (0.2, 3.0)),
    "saturation": Kind(_saturation, "gain", (), (), (0.0, 3.0)),
    "warmth": Kind(_warmth, "gain", (), (), (0.6, 1.7)),
    "rotation": Kind(pose.turn, "degrees", (), (), (-75.0, 75.0)),
}
COMMON_KINDS = tuple(name for name, kind in KINDS.items() if kind.small)
