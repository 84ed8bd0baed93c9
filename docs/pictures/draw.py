"""Draw the pictures of docs/concepts.md from one real job: `python docs/pictures/draw.py [MODEL OUT]`.

With the model and the output folder of a local repair (`archrepair repair … --local --out OUT`) its numbers are read
into job.json first; without, they are those that lie there.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NUMBERS = HERE / "job.json"
WIDTH = 480  # little, so that the words can be read on a telephone
INK, MUTED, PAPER = "#1b1b1b", "#666666", "#ffffff"
# Okabe and Ito's: they stay apart for those who see fewer colours.
BLUE, ORANGE, GREY, YELLOW = "#0072b2", "#d55e00", "#dddddd", "#997700"
OF_STATE = {"pass": BLUE, "fail": ORANGE, "inconclusive": YELLOW}
# What each phase is for, in the order they come.
PHASES = {
    "ingesting": "the file becomes a network, data are read",
    "baseline": "what the original answers",
    "localizing": "which block is to blame",
    "repairing": "candidates are tried, the best is trained",
    "verifying": "the choice is measured on test, once",
    "packaging": "model and report are written, read back",
}
# One repair, three questions.
ASKED = ("test.accuracy >= 0.85", "test.accuracy >= 0.90", "test.accuracy >= 0.95")


def numbers_of(model: Path, out: Path) -> dict[str, Any]:
    """What the pictures show of a job: its report, and the multiply-adds of its model."""
    import torch

    from archrepair_core.cost import count_macs
    from archrepair_core.gates import evaluate_gates
    from archrepair_core.ingest.model import ingest_model

    report = json.loads((out / "report.json").read_text())
    with tempfile.TemporaryDirectory() as work:
        network = ingest_model(model, Path(work)).model
    macs = count_macs(network, torch.zeros(1, 1, 8, 8))
    blocks = {block["name"]: macs[block["name"]] for block in report["blocks"] if block["level"] == "block"}
    gates = [
        {"expression": gate.expression, "state": gate.state, "observed": gate.observed, "limit": gate.limit,
         "interval": gate.interval}
        for gate in evaluate_gates(ASKED, {"test": report["test"]})
    ]  # fmt: skip
    return {"seconds": report["seconds"], "macs": macs[""], "blocks": blocks, "n": report["test"]["n"], "gates": gates}


def svg(height: int, title: str, body: Sequence[str]) -> str:
    """A whole picture; the title is read to those who do not see it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="14">\n<title>{escape(title)}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>\n'
    )
    return head + "\n".join(body) + "\n</svg>\n"


def text(x: float, y: float, words: str, *, colour: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    """A line of words that begins, ends or has its middle at `x`."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, *, colour: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" fill="{colour}"/>'


def line(path: str, colour: str, *, width: int, dashed: bool = False) -> str:
    """A stroke along the path."""
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<path d="{path}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def draw_phases(job: Mapping[str, Any]) -> str:
    """Phase under phase: when it ran within the job, how long, and what for."""

    def rows() -> Iterator[str]:
        left, room, total = 150, WIDTH - 160, job["seconds"]["total"]
        began = 0.0
        for row, (name, purpose) in enumerate(PHASES.items()):
            seconds, y = job["seconds"][name], 10 + row * 52
            yield text(10, y + 16, name, weight="bold")
            yield text(left - 10, y + 16, f"{seconds:.1f} s", anchor="end")
            yield box(left + room * began / total, y, max(room * seconds / total, 3), 22, colour=BLUE)
            yield text(10, y + 36, purpose, colour=MUTED)
            began += seconds

    return svg(10 + 52 * len(PHASES), "The phases of a job and the seconds each took", [*rows()])


def draw_cut(job: Mapping[str, Any]) -> str:
    """The network as a row of boxes whose widths are multiply-adds, cut before its last block."""
    names, macs, total = [*job["blocks"]], [*job["blocks"].values()], job["macs"]
    room, left, y = WIDTH - 20, 10, 60
    # Stem and head are a sliver each; they stand together at the left.
    edges = [left + room * (total - sum(macs)) / total]
    for count in macs:
        edges.append(edges[-1] + room * count / total)
    trained = macs[-1] / total

    def parts() -> Iterator[str]:
        yield box(left, y, edges[0] - left - 2, 60, colour=GREY)
        for name, (begin, end) in zip(names, pairwise(edges), strict=True):
            blamed = name == names[-1]
            yield box(begin, y, end - begin - 2, 60, colour=BLUE if blamed else GREY)
            yield text((begin + end) / 2, y + 36, name, anchor="middle", colour=PAPER if blamed else INK)
        cut = edges[-2] - 1
        yield line(f"M{cut:.1f} 30V165", ORANGE, width=3, dashed=True)
        yield text(cut, 22, "the cut", anchor="middle", colour=ORANGE, weight="bold")
        yield text(left, y + 82, f"{1 - trained:.0%} of the multiply-adds:")
        yield text(left, y + 100, "once per image, and kept")
        yield text(cut + 10, y + 82, f"{trained:.0%}:", colour=BLUE)
        yield text(cut + 10, y + 100, "at every step", colour=BLUE)

    return svg(175, "A network that is cut before the block to be trained", [*parts()])


def draw_gates(job: Mapping[str, Any]) -> str:
    """Gate under gate: the interval of what was measured, and the limit it has to be right of."""
    low, high, left, room = 0.83, 0.97, 10, WIDTH - 20
    bottom = 40 + len(job["gates"]) * 76

    def at(value: float) -> float:
        return left + room * (value - low) / (high - low)

    def rows() -> Iterator[str]:
        yield text(left, 18, f"accuracy on {job['n']} test images, with its 95 % interval", colour=MUTED)
        for row, gate in enumerate(job["gates"]):
            top, colour = 52 + row * 76, OF_STATE[gate["state"]]
            y, (begin, end) = top + 26, gate["interval"]
            yield text(left, top, gate["expression"])
            yield text(left + room, top, gate["state"], anchor="end", colour=colour, weight="bold")
            yield line(f"M{at(gate['limit']):.1f} {y - 16}V{y + 16}", INK, width=2)
            yield line(f"M{at(begin):.1f} {y}H{at(end):.1f}", colour, width=4)
            yield f'<circle cx="{at(gate["observed"]):.1f}" cy="{y}" r="6" fill="{colour}"/>'
            yield text(at(gate["limit"]) + 6, y + 18, f"{gate['limit']:.0%}", colour=MUTED)

    return svg(bottom, "Three gates on one measurement: pass, inconclusive and fail", [*rows()])


PICTURES = {"phases.svg": draw_phases, "cut.svg": draw_cut, "gates.svg": draw_gates}


def main(arguments: Sequence[str]) -> None:
    """Read the numbers if there is a job to read, and draw."""
    if arguments:
        model, out = map(Path, arguments)
        NUMBERS.write_text(json.dumps(numbers_of(model, out), indent=1) + "\n")
    job = json.loads(NUMBERS.read_text())
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(job))


if __name__ == "__main__":
    main(sys.argv[1:])
