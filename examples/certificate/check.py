"""Check a certificate of `repair.method = "certify"` with NumPy alone: `python check.py certificate.npz [repaired.pt]`.

For every point the label's logit must exceed every other by more than float32 arithmetic, in whatever order, can err.
A product of two float32 numbers is exact in double precision, and `math.fsum` rounds a sum of such products only once,
so the sign of every margin here is exact. With the repaired model (TorchScript; needs torch) its last layer must be the
certified one, bit for bit. Exits 0 when all holds, 1 when something does not, and says which point.
"""

import hashlib
import json
import math
import sys

import numpy as np

UNIT = 2.0**-24  # of float32
SMALLEST_NORMAL = 2.0**-126  # what is below it may be flushed to zero
SAFE = 1 + 1e-9  # what is rounded here is rounded towards refusal


def check(path: str, model_path: str | None = None) -> list[str]:
    """What is wrong; empty when the certificate holds."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["meta"]))
    weight, bias, features, labels = (arrays[name] for name in ("weight", "bias", "features", "labels"))
    wrong = []
    if meta["format"] != "archrepair-certificate-1":
        wrong.append(f"unknown format {meta['format']}")
    if not all(each.dtype == np.float32 and np.isfinite(each).all() for each in (weight, bias, features)):
        return [*wrong, "weights and features must be finite float32 numbers"]
    if hashlib.sha256(weight.tobytes() + bias.tobytes()).hexdigest() != meta["weights_sha256"]:
        wrong.append("the digest is not that of the weights")
    if len(labels) != meta["certified"] or len(features) != len(labels):
        return [*wrong, f"{meta['certified']} points are said to be certified, {len(labels)} labels are there"]
    for row, (feature, label) in enumerate(zip(features, labels.tolist(), strict=True)):
        surely = sure_margin(weight, bias, feature, label)
        if surely <= 0:
            wrong.append(f"point {row}: class {label} does not lead for sure ({surely:.3g})")
        elif arrays["margin"][row] > surely * SAFE:
            wrong.append(f"point {row}: a margin of {arrays['margin'][row]:.6g} is claimed, {surely:.6g} is proved")
    if model_path is not None:
        wrong += compare(model_path, meta["layer"], weight, bias)
    return wrong


def sure_margin(weight: np.ndarray, bias: np.ndarray, feature: np.ndarray, label: int) -> float:
    """The least lead over any other class, less what float32 arithmetic can err in both logits."""
    count = len(feature) + 1
    gamma = count * UNIT / (1 - count * UNIT)
    h = feature.astype(np.float64)

    def terms(k: int) -> list[float]:
        return [*(weight[k].astype(np.float64) * h).tolist(), float(bias[k])]

    def error(k: int) -> float:
        return (gamma * math.fsum(map(abs, terms(k))) + count * SMALLEST_NORMAL) * SAFE

    own, own_error = terms(label), error(label)
    leads = [
        math.fsum([*own, *(-term for term in terms(k))]) - own_error - error(k)
        for k in range(len(weight))
        if k != label
    ]
    return min(leads)


def compare(model_path: str, layer: str, weight: np.ndarray, bias: np.ndarray) -> list[str]:
    """Whether the model's layer is the certified one."""
    import torch

    state = torch.jit.load(model_path, map_location="cpu").state_dict()
    found = {name: state.get(f"{layer}.{name}") for name in ("weight", "bias")}
    if found["weight"] is None:
        return [f"the model has no {layer}.weight"]
    own_bias = np.zeros_like(bias) if found["bias"] is None else found["bias"].float().numpy()
    same = np.array_equal(found["weight"].float().numpy(), weight) and np.array_equal(own_bias, bias)
    return [] if same else [f"{layer} of the model is not the certified one"]


if __name__ == "__main__":
    problems = check(*sys.argv[1:3])
    for problem in problems:
        sys.stdout.write(f"REFUSED {problem}\n")
    if not problems:
        sys.stdout.write("the certificate holds\n")
    sys.exit(1 if problems else 0)
