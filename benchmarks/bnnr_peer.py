"""One run of bnnr in an environment of its own: `python bnnr_peer.py FOLDER`; it imports nothing of ours.

FOLDER holds network.pt (an eager network for pixels 0–1), sets.npz (`ROLE_images`, bytes N×C×H×W, and `ROLE_labels`)
and settings.json. It gets answers.npz (`ROLE_before` and `ROLE_after`, logits N×classes) and facts.json.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bnnr
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 64  # what bnnr's own commands train with
ASKED = ("test", "regression")
Sets = Mapping[str, npt.NDArray[Any]]


def main(folder: Path) -> int:
    """Learn from `train`, let bnnr choose on `validation`, answer the rest before and after."""
    settings = json.loads((folder / "settings.json").read_text())
    # Written by the benchmark a moment ago, on this machine: trusted.
    network = torch.load(folder / "network.pt", weights_only=False)
    with np.load(folder / "sets.npz") as stored:
        sets = dict(stored)
    answers = {f"{role}_before": logits_of(network, sets[f"{role}_images"]) for role in ASKED}
    started, cpu_started = time.monotonic(), time.process_time()
    result = train(network, sets, settings, folder)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    answers |= {f"{role}_after": logits_of(network, sets[f"{role}_images"]) for role in ASKED}
    np.savez(folder / "answers.npz", **answers)
    facts = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "epochs": result.run_record.total_gpu_epochs,
        "path": result.best_path,
        "validation_accuracy": result.best_metrics["accuracy"],
        "bnnr": bnnr.__version__,
        "torch": torch.__version__,
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def train(network: nn.Module, sets: Sets, settings: Mapping[str, Any], folder: Path) -> bnnr.BNNRRunResult:
    """bnnr's `quick_run`, of which the settings say what is no default; leaves its choice in `network`."""
    result = bnnr.quick_run(
        network,
        batches_of(sets, "train", shuffle=True),
        batches_of(sets, "validation"),
        checkpoint_dir=folder / "checkpoints",
        report_dir=folder / "reports",
        device="cpu",
        verbose=False,
        seed=settings["seed"],
        **settings["config"],
    )
    # After a last round without a winner the network holds a candidate that lost: the choice is what was saved last.
    chosen = torch.load(result.checkpoints[-1].checkpoint_path, weights_only=False)
    network.load_state_dict(chosen["model_state"]["model"])
    return result


def batches_of(sets: Sets, role: str, *, shuffle: bool = False) -> DataLoader:
    """With the number of each image, by which bnnr keeps its saliency maps."""
    labels = torch.from_numpy(sets[f"{role}_labels"])
    dataset = TensorDataset(pixels(sets[f"{role}_images"]), labels, torch.arange(len(labels)))
    return DataLoader(dataset, BATCH_SIZE, shuffle=shuffle)


def pixels(images_NCHW: npt.NDArray[np.uint8]) -> Tensor:
    """Bytes as floats 0–1."""
    return torch.from_numpy(images_NCHW).float() / 255


def logits_of(network: nn.Module, images_NCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Of the network in eval mode."""
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in pixels(images_NCHW).split(500)]).numpy()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
