"""Outside peers beside our own rows: `python -m benchmarks.peers` runs what is missing, `--document` writes the page.

bnnr (PyPI) is the one published tool we could run. It gets what a job of ours gets: the network, the repair images less
the fifth that is cut off to validate, the replay images, and the seconds of the case. Its answers are measured by our
code. It runs in a virtual environment of its own, made at the first run: 5.5 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, fx, nn

from archrepair_core.data.split import GUARD_SHARE, stratified_split
from archrepair_core.evaluate import summarize_split
from archrepair_core.ingest.model import ingest_model
from archrepair_core.statistics import holm
from benchmarks.cases import CASES, Case, Images, Labels, Sets
from benchmarks.cifar import OUT
from benchmarks.comparisons import OURS, SIGNIFICANT
from benchmarks.document import PAGE, put
from benchmarks.ranks import compare
from benchmarks.results import SCHEMA, Row, key_of, merge, read_published, right_after, row_of
from benchmarks.run import Run
from benchmarks.suites import SEEDS

NAME, VERSION, TORCH = "bnnr", "0.8.0", "2.14.1"
HOME = OUT / "peers"
SCRIPT = Path(__file__).with_name("bnnr_peer.py")
PUBLISHED = Path("benchmarks/peers.parquet")
# Of the rows of peers; `repair_seconds` are of the processor, as the machine may be shared.
PEER_SCHEMA = pa.schema([*SCHEMA, ("wall_seconds", pa.float64()), ("epochs", pa.int64())])
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
BESIDE = (OURS, "network fine-tune")
VALIDATION_SHARE = 0.2  # as a job of ours cuts it


@dataclass(frozen=True)
class Settings:
    """What is no default of bnnr's `quick_run`, found on the draw of seed 1000 so that a run ends within the seconds.

    On the digits that was 8 epochs, which took 14 seconds on seed 23, and so was cut, by that alone, to 5. `epochs` are
    of every candidate of each of the `rounds`; only the first `replay` images are given.
    """

    epochs: int
    rounds: int
    replay: int | None = None

    def told(self) -> dict[str, Any]:
        """For the script. Without maps of saliency, which by default are reported and choose nothing.

        On the digits five epochs took 15 seconds with them, and 24 epochs 22 seconds without.
        """
        return {"m_epochs": self.epochs, "max_iterations": self.rounds, "xai_enabled": False}


SETTINGS: dict[str, Settings] = {
    "digits": Settings(1, 1),
    "fashion rotated": Settings(1, 1),
    "overfitted": Settings(1, 1, replay=2000),
}


def run_missing(cases: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """The rows of what has run here, now or before."""
    python = _environment()
    rows = []
    for run in (Run(case, NAME, seed) for seed in seeds for case in cases):
        kept = _kept(run)
        if not (kept / "facts.json").is_file():
            _run_one(run, python, kept)
            sys.stderr.write(f"{run.case}, seed {run.seed}: {(kept / 'facts.json').read_text()}")
        rows.append(_row(run, kept))
    return rows


def _kept(run: Run) -> Path:
    return HOME / "runs" / f"{run.budget:.0f}s" / run.case / f"{NAME}-{run.seed}"


def _environment() -> Path:
    """The Python that has bnnr, of the index by name."""
    home = HOME / NAME
    python = home / "bin" / "python"
    if not (home / "installed").is_file():
        venv.create(home, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"{NAME}=={VERSION}", f"torch=={TORCH}"], check=True)
        (home / "installed").touch()
    return python.absolute()


def _run_one(run: Run, python: Path, kept: Path) -> None:
    """Hand over, wait, keep its answers and facts; what fails ends the benchmark."""
    case = CASES[run.case]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model, sets = case.model(scratch), case.draw(run.seed)
        grey = sets["test"][0].ndim == 3
        torch.save(eager_network(model, case, scratch, grey=grey), scratch / "network.pt")
        settings = SETTINGS[run.case]
        given = sets_given(sets, seed=run.seed, replay=settings.replay)
        np.savez(scratch / "sets.npz", **given)
        told = {"seed": run.seed, "config": settings.told()}
        (scratch / "settings.json").write_text(json.dumps(told))
        # Apart from the checkout, so that it cannot import anything of ours.
        subprocess.run([python, "-P", SCRIPT.absolute(), scratch], check=True, cwd=scratch, env=_variables())
        with np.load(scratch / "answers.npz") as answers:
            stored = {name: answers[name] for name in answers}
        stored |= {f"{role}_labels": given[f"{role}_labels"] for role in ("test", "regression")}
        kept.mkdir(parents=True, exist_ok=True)
        np.savez(kept / "answers.npz", **stored)
        facts = json.loads((scratch / "facts.json").read_text())
        (kept / "facts.json").write_text(json.dumps(facts | told, indent=1) + "\n")


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


class _FromPixels(nn.Module):
    """A network behind its normalization: bnnr changes images as bytes, and explains the network on pixels 0–1.

    A `grey` one sees the mean of three channels: bnnr's ProCAM fails on images of one (IndexError in `_rgb_to_hsv`).
    """

    def __init__(self, network: nn.Module, preprocessing: Mapping[str, Any], *, grey: bool) -> None:
        super().__init__()
        self.network, self.grey = network, grey
        self.register_buffer("mean", torch.tensor(preprocessing.get("mean", [0.0])).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.get("std", [1.0])).view(-1, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        pixels = x_NCHW.mean(1, keepdim=True) if self.grey else x_NCHW
        return self.network((pixels - self.mean) / self.std)


def eager_network(model: Path, case: Case, scratch: Path, *, grey: bool) -> fx.GraphModule:
    """The editable twin that we ourselves repair, as a graph of torch's own modules, which torch alone can read.

    The TorchScript file will not do: bnnr looks for an `nn.Conv2d`, finds none, and hangs hooks on what takes none.
    """
    twin = ingest_model(model, scratch).model
    return fx.symbolic_trace(_FromPixels(twin, case.preprocessing, grey=grey).eval())


def sets_given(sets: Sets, *, seed: int, replay: int | None = None) -> dict[str, Images | Labels]:
    """`train`, `validation`, `test` and `regression`, as bytes N×3×H×W and labels.

    Replay images are learned from, and never validated on, as in our own jobs; of the regression images those are
    asked for that no choice of ours sees.
    """
    (images, labels), (known, known_labels) = sets["repair"], sets["regression"]
    kept, held = stratified_split(labels, fraction=VALIDATION_SHARE, seed=seed)
    measured, _guard = stratified_split(known_labels, fraction=GUARD_SHARE, seed=seed)
    parts = {
        "train": [(images[kept], labels[kept]), (sets["replay"][0][:replay], sets["replay"][1][:replay])],
        "validation": [(images[held], labels[held])],
        "test": [sets["test"]],
        "regression": [(known[measured], known_labels[measured])],
    }
    given: dict[str, Images | Labels] = {}
    for role, several in parts.items():
        pixels, truth = (np.concatenate(part) for part in zip(*several, strict=True))
        given[f"{role}_images"] = pixels[:, None].repeat(3, 1) if pixels.ndim == 3 else np.moveaxis(pixels, 3, 1)
        given[f"{role}_labels"] = truth
    return given


def _row(run: Run, kept: Path) -> Row:
    """As a run of ours, but that no gates were asked, nothing was blamed, and seconds are of the processor."""
    facts = json.loads((kept / "facts.json").read_text())
    with np.load(kept / "answers.npz") as stored:
        answers = dict(stored)
    report: dict[str, Any] = {
        role: summarize_split(
            *(torch.from_numpy(answers[f"{role}_{when}"]) for when in ("before", "after")), answers[f"{role}_labels"]
        )
        for role in ("test", "regression")
    }
    report |= {
        "seconds": {"localizing": 0.0, "repairing": facts["cpu_seconds"]},
        "localization": None,
        "verdict": "not asked",
        "chosen": {"name": facts["path"]},
        "environment": {"torch": facts["torch"]},
    }
    return row_of(run, report, answers) | {"wall_seconds": facts["seconds"], "epochs": facts["epochs"]}


NOT_RUN: dict[str, str] = {
    "eAI-Repair-Toolkit": "`pip download eai-repair-toolkit` (the name in its own project file), `eairepair` and "
    "`repair-toolkit`: no such project on the index. Its project file asks for TensorFlow before 2.16 and NumPy "
    "before 2, and its repairs are of Keras models.",
    "SyTorch": "`pip download sytorch`: no such project on the index.",
    "AIRepair": "`pip download AIRepair`: no such project on the index.",
    "NNrepair": "`pip download nnrepair`: no such project on the index.",
    "Arachne": "`pip download arachne`: another project of that name, Arachne 0.5.0, a wrapper of Scrapy spiders. "
    "`arachne` of our tables is our re-implementation.",
}

CANNOT = (
    "What it asks for, and does not do:",
    "",
    "- It wants the network as Python modules, and labelled images. A TorchScript file ends in a ValueError (`Could",
    "  not infer target_layers`), without saliency in a RuntimeError (`register_forward_hook is not supported on",
    "  ScriptModules`): the networks above were rebuilt by our own reader.",
    "- It knows no images that must stay right, no limit on what may break, and no seconds: epochs were set by hand.",
    "- The original is none of its candidates: the least it answers is a fine-tuned network.",
    "- After a last round that found nothing better the network in memory is a candidate that lost, so its choice was",
    "  read from the checkpoint it saved last.",
    "- Grey pictures of one channel end in an IndexError (ProCAM); it was given three equal ones.",
    "",
)


def section(peers: Sequence[Row], ours: Sequence[Row]) -> list[str]:
    """What the page says, from the two tables."""
    return [
        "## Outside peers",
        "",
        *_introduction(peers),
        "",
        "<!-- not run: it takes minutes, an environment of 5.5 GB, and data that are not here -->",
        "```bash",
        "python -m benchmarks.peers              # what has not run here; ARCHREPAIR_DATA names the CIFAR-10 files",
        "python -m benchmarks.peers --document   # this section",
        "```",
        "",
        *table(peers, ours),
        "",
        *_verdict(peers, ours),
        "",
        *CANNOT,
        "What could not be run:",
        "",
        "| tool | what happened |",
        "|---|---|",
        *(f"| {tool} | {reason} |" for tool, reason in NOT_RUN.items()),
    ]


def table(peers: Sequence[Row], ours: Sequence[Row]) -> list[str]:
    """A line per draw and method: the peer's, then ours of the same draw with what they are ahead."""
    lines = [
        "| case | seed | method | accuracy % | change, points | repair rate % | broken % | known images broken % "
        "| seconds | ahead of bnnr, points | p (Holm) |",
        "|---" * 11 + "|",
    ]
    compared = comparisons(peers, ours)
    for peer in _ordered(peers):
        lines.append(f"{_cells(peer)} | | |")
        for method in BESIDE:
            found = compared.get((peer["case"], peer["seed"], method))
            if found is None:
                lines.append(f"| {peer['case']} | {peer['seed']} | {method} | not run" + " |" * 8)
                continue
            row, difference, p = found
            lines.append(f"{_cells(row)} | {100 * difference:+.2f} | {p:.2g} |")
    return lines


def _ordered(rows: Sequence[Row]) -> list[Row]:
    places = list(CASES)
    return sorted(rows, key=lambda row: (places.index(row["case"]), row["seed"]))


def _cells(row: Row) -> str:
    rates = [f"{100 * row[name]:.2f}" for name in ("accuracy_after", "change", "repair_rate", "broken_rate")]
    known = "" if row["known_broken_rate"] is None else f"{100 * row['known_broken_rate']:.2f}"
    cells = [row["case"], str(row["seed"]), row["method"], *rates, known, f"{row['repair_seconds']:.0f}"]
    return f"| {' | '.join(cells)}"


def comparisons(peers: Sequence[Row], ours: Sequence[Row]) -> dict[tuple[str, int, str], tuple[Row, float, float]]:
    """By case, seed and method: our row, what it is ahead of the peer, and McNemar's p, by Holm over all of them.

    Raises ValueError where the two were not asked the same: right before are other inputs.
    """
    found: dict[tuple[str, int, str], tuple[Row, float, float]] = {}
    own = {key_of(row): row for row in ours}
    for peer in _ordered(peers):
        for method in BESIDE:
            row = own.get(Run(peer["case"], method, peer["seed"]).key)
            if row is None:
                continue
            if row["right_before"] != peer["right_before"]:
                raise ValueError(f"{peer['case']}, seed {peer['seed']}: {NAME} and {method} had not the same to repair")
            against = compare(right_after(row), right_after(peer))
            found[peer["case"], peer["seed"], method] = (row, against.difference, against.p)
    adjusted = holm([p for _row, _difference, p in found.values()])
    return {key: (row, difference, p) for (key, (row, difference, _p)), p in zip(found.items(), adjusted, strict=True)}


def _verdict(peers: Sequence[Row], ours: Sequence[Row]) -> list[str]:
    """On how many draws each of ours is ahead or behind beyond chance."""
    compared = comparisons(peers, ours)
    said = []
    for method in BESIDE:
        of_method = [(difference, p) for (_c, _s, name), (_row, difference, p) in compared.items() if name == method]
        ahead = sum(difference > 0 and p < SIGNIFICANT for difference, p in of_method)
        behind = sum(difference < 0 and p < SIGNIFICANT for difference, p in of_method)
        said.append(
            f"`{method}` is significantly ahead of bnnr on {ahead} of {len(of_method)} draws, behind on {behind}."
        )
    return said


def _introduction(peers: Sequence[Row]) -> list[str]:
    clock = max(row["wall_seconds"] / row["budget_seconds"] for row in peers)
    used = max(row["repair_seconds"] / row["budget_seconds"] for row in peers)
    epochs = "; ".join(_epochs(case, peers) for case in dict.fromkeys(row["case"] for row in _ordered(peers)))
    return [
        f"[bnnr](https://pypi.org/project/bnnr/) {VERSION} trains a PyTorch classifier and searches augmentations",
        "for it. By `benchmarks/bnnr_peer.py`, in an environment of its own, it was given what a job of ours gets: the",
        "network, as eager modules; the repair images, less the same fifth to validate on; replay images; and as many",
        "epochs as its `quick_run` ends with within the seconds of the case, found on a draw that is not shown (but",
        "cut on the digits from 8, which had taken 14 s of 10 on seed 23).",
        "Optimiser, augmentations and choice are its defaults. Its maps of saliency, which choose nothing by default,",
        f"are off. Epochs over all candidates: {epochs}.",
        "It saw neither test nor regression images, and the same code measures it on the same ones as every other row.",
        "The p-values are of exact McNemar tests, by Holm over this table. The machine was shared while bnnr ran: its",
        f"seconds are of the processor, at most {100 * used:.0f} % of what the case gives ({100 * clock:.0f} % by the",
        "clock), while ours are by the clock of the same machine, and so had less of it if anything.",
        f"{len(peers)} of {len(SETTINGS) * len(SEEDS)} draws have run.",
    ]


def _epochs(case: str, peers: Sequence[Row]) -> str:
    epochs = sorted({row["epochs"] for row in peers if row["case"] == case})
    replay = SETTINGS[case].replay
    less = "" if replay is None else f" of the first {replay:,} replay images, as no search over all ends in time"
    return f"{case} {' or '.join(map(str, epochs))}{less}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run and publish, or write the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--document", action="store_true", help="run nothing, write the section of docs/results.md")
    options = parser.parse_args(argv)
    if options.document:
        generated = section(read_published(PUBLISHED), read_published())
        PAGE.write_text(put(PAGE.read_text(), [*generated, ""], begin=BEGIN, end=END))
        return 0
    rows = merge(read_published(PUBLISHED), run_missing(options.cases, options.seeds))
    pq.write_table(pa.Table.from_pylist(rows, PEER_SCHEMA), PUBLISHED, compression="zstd")
    print(f"{len(rows)} runs in {PUBLISHED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
