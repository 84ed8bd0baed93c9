"""Judge a repaired model as a customer would: plain torch, in a process that cannot import this project.

Run as a script (`python -I judge.py ORIGINAL REPAIRED TEST.npz`); prints one JSON object.
"""

import importlib.abc
import json
import sys
import warnings
from math import comb
from typing import Any

OURS = ("app", "archrepair_client", "archrepair_core", "migrations", "worker")


class Refuse(importlib.abc.MetaPathFinder):
    """Makes this project unimportable, however it is installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Refuse our packages and leave all others to Python."""
        if fullname.split(".")[0] in OURS:
            raise ImportError(f"{fullname} must not be importable here")


def can_import_project() -> bool:
    """Whether the wall above has a hole."""
    try:
        __import__("archrepair_core")
    except ImportError:
        return False
    return True


def judge(original: str, repaired: str, test: str) -> dict[str, Any]:
    """Accuracy before and after, repair and break rate, exact McNemar p-value, on grey 0–255 images [N, H, W]."""
    import numpy as np
    import torch

    with np.load(test, allow_pickle=False) as arrays:
        x_NCHW = torch.from_numpy(arrays["images"]).float().unsqueeze(1) / 255
        labels_N = torch.from_numpy(arrays["labels"])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        before, after = ((torch.jit.load(path).eval()(x_NCHW).argmax(1) == labels_N) for path in (original, repaired))
    fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
    return {
        "n": len(labels_N),
        "accuracy_before": before.float().mean().item(),
        "accuracy_after": after.float().mean().item(),
        "repair_rate": fixed / max(1, int((~before).sum())),
        "break_rate": broken / len(labels_N),
        "fixed": fixed,
        "broken": broken,
        "p_value": mcnemar_exact(fixed, broken),
    }


def mcnemar_exact(fixed: int, broken: int) -> float:
    """Two-sided exact binomial test that a changed answer is as often fixed as broken."""
    changed = fixed + broken
    tail = sum(comb(changed, k) for k in range(min(fixed, broken) + 1)) / 2**changed
    return min(1.0, 2 * tail)


def main() -> int:
    """Judge the files of the command line."""
    sys.meta_path.insert(0, Refuse())
    if can_import_project():
        raise SystemExit("this project can be imported here, so the judgement would prove nothing")
    sys.stdout.write(json.dumps(judge(*sys.argv[1:4])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
