"""A certificate: inputs that a repaired last layer answers right in any float32 arithmetic, as data anyone can check.

The layer is linear: z = W·h + b. Weights and features are float32, so their products are exact in double precision,
and sums of them are known to within a bound. However a machine orders a float32 sum of n products, it errs by at most
γ_n·Σ|terms| + n·2⁻¹²⁶, with γ_n = n·u / (1 − n·u) and u = 2⁻²⁴ (Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd ed., section 3.1; the second term is for what is flushed to zero). An input is certified when its
margin exceeds the errors of both logits. That is a statement about the layer from the features h on, and about float32:
not about TF32, bfloat16 or half precision, and not about what computes h. How far every feature may be off before it
fails is its `radius`.

docs/repair.md describes the file; examples/certificate/check.py checks it without this code.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.localize.influence import recorded
from archrepair_core.modes import eval_mode
from archrepair_core.spec import Preprocessing

FORMAT = "archrepair-certificate-1"
BATCH_SIZE = 128
# Unit roundoffs, and what a bound is widened by because it is itself computed in double precision.
FLOAT32, FLOAT64, WIDENED = 2.0**-24, 2.0**-53, 1 + 1e-6
SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Points:
    """Inputs of the last layer: features float32 [P, D], labels, digests of the images; which the original fails on."""

    layer: str
    features_PD: npt.NDArray[np.float32]
    labels_P: npt.NDArray[np.int64]
    digests_P: npt.NDArray[np.bytes_]
    failed_P: npt.NDArray[np.bool_]

    def subset(self, items: npt.NDArray[np.intp]) -> "Points":
        """The points at `items`, in that order."""
        return Points(
            layer=self.layer,
            features_PD=self.features_PD[items],
            labels_P=self.labels_P[items],
            digests_P=self.digests_P[items],
            failed_P=self.failed_P[items],
        )


@dataclass(frozen=True)
class Proof:
    """Of points P: the least by which the label leads in any float32 arithmetic, and how far features may be off."""

    margin_P: npt.NDArray[np.float64]
    radius_P: npt.NDArray[np.float64]


def points_at(
    model: nn.Module, layer: str, images: LabelledImages, preprocessing: Preprocessing, device: torch.device
) -> Points:
    """What enters the layer for every image, unrounded."""
    parts, answers = [], []
    with torch.inference_mode(), eval_mode(model), recorded(model, [layer]) as seen:
        for start in range(0, len(images), BATCH_SIZE):
            logits = model(to_tensor(images.images[start : start + BATCH_SIZE], preprocessing).to(device))
            answers.append(logits.argmax(1).cpu())
            parts.append(seen[layer][0].float().cpu())
    failed_P = torch.cat(answers).numpy() != images.labels
    return Points(layer, torch.cat(parts).numpy(), images.labels.astype(np.int64), images.sample_digests, failed_P)


def prove(weight_KD: npt.NDArray[np.float32], bias_K: npt.NDArray[np.float32], points: Points) -> Proof:
    """Lower bounds for every point; a point whose margin is not positive is not certified."""
    weight, bias, features = (each.astype(np.float64) for each in (weight_KD, bias_K, points.features_PD))
    logits_PK = features @ weight.T + bias
    terms_PK = (np.abs(features) @ np.abs(weight).T + np.abs(bias)) * WIDENED
    count = weight.shape[1] + 1
    error_PK = ((gamma(count, FLOAT32) + gamma(count, FLOAT64)) * terms_PK + count * SMALLEST_NORMAL) * WIDENED
    rows = np.arange(len(features))
    own_P, own_error_P = logits_PK[rows, points.labels_P], error_PK[rows, points.labels_P]
    sure_PK = own_P[:, None] - logits_PK - own_error_P[:, None] - error_PK
    steepness_KK = np.abs(weight[:, None] - weight[None]).sum(2)
    radius_PK = sure_PK / np.maximum(steepness_KK[points.labels_P], np.finfo(np.float64).tiny)
    sure_PK[rows, points.labels_P] = radius_PK[rows, points.labels_P] = np.inf
    return Proof(sure_PK.min(1), radius_PK.min(1))


def gamma(count: int, roundoff: float) -> float:
    """γ_n."""
    return count * roundoff / (1 - count * roundoff)


def write_certificate(path: Path, model: nn.Module, points: Points, *, seed: int) -> int:
    """Write what the delivered `model` proves of the points, plain arrays without pickles; how many that are."""
    layer = model.get_submodule(points.layer)
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach().float().cpu().numpy()
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().float().cpu().numpy()
    proof = prove(weight, bias, points)
    certified = np.flatnonzero(proof.margin_P > 0)
    kept = points.subset(certified)
    meta = {
        "format": FORMAT,
        "layer": points.layer,
        "certified": len(certified),
        "certified_failed": int(kept.failed_P.sum()),
        "asked_failed": int(points.failed_P.sum()),
        "weights_sha256": hashlib.sha256(weight.tobytes() + bias.tobytes()).hexdigest(),
        "seed": seed,
    }
    np.savez_compressed(
        path,
        allow_pickle=False,
        weight=weight,
        bias=bias,
        features=kept.features_PD,
        labels=kept.labels_P,
        image_digests=np.array([digest.hex() for digest in kept.digests_P.tolist()], dtype="U32"),
        failed=kept.failed_P,
        margin=proof.margin_P[certified],
        radius=proof.radius_P[certified],
        meta=np.array(json.dumps(meta)),
    )
    return len(certified)
