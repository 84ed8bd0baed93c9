"""What is run for which question, as one table; every suite is resumable and shares the runs of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from archrepair_core.spec import COMMON_CORRUPTIONS
from benchmarks.cases import CASES, PAPER_SIZES
from benchmarks.methods import ABLATIONS, COMPARED, LITERATURE, LOCALIZATIONS, METHODS, ONE_BLOCK
from benchmarks.run import Protocol, Run

# The draws 0 to 22 were looked at before defaults were changed.
SEEDS = (23, 24, 25)


@dataclass(frozen=True)
class Suite:
    """Every method on every case and seed, and the weights of each of the `blocks` of a case; `seconds` None are those
    of each case. Who names no suite does not get one that `needs_gpu` without."""

    question: str
    cases: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int] = SEEDS
    protocol: Protocol = "honest"
    seconds: float | None = None
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    needs_gpu: bool = False

    def runs(self) -> list[Run]:
        """Its cells, seed by seed, so that one that was stopped has whole tables."""
        return [
            Run(case, method, seed, self.protocol, self.seconds)
            for seed in self.seeds
            for case in self.cases
            for method in (*self.methods, *(f"{ONE_BLOCK}{name}" for name in self.blocks.get(case, ())))
        ]


# Four corruptions, one of each group of CIFAR-10-C, stand for the fifteen where every method is asked.
ONE_OF_EACH = ("gaussian_noise", "defocus_blur", "fog", "pixelate")
REST = {*COMMON_CORRUPTIONS, *PAPER_SIZES} - {*ONE_OF_EACH}
HEADLINE = tuple(case for case in CASES if case not in REST)
# A shift, a harder one, and damage: what is asked of many methods at once.
ONE_OF_EACH_FAULT = ("digits", "fashion rotated", "jpeg", "bit flips in ResNet-18")
SUITES: dict[str, Suite] = {
    "quick": Suite(
        "The small cases alone: no data of one's own, minutes on a laptop",
        ("digits", "fashion rotated"),
        (
            "auto",
            "block search",
            "network fine-tune",
            "weights of one block",
            "batch-norm only",
            "arachne",
            "apricot",
            "sensei",
            "few-shot mix",
            "certify",
        ),
        seeds=SEEDS[:1],
        seconds=10,
    ),
    "headline": Suite("Which method repairs best, and what does it break?", HEADLINE, tuple(COMPARED)),
    "literature": Suite(
        "How do the other methods of the literature fare?", ONE_OF_EACH_FAULT, tuple(LITERATURE), seeds=SEEDS[:1]
    ),
    "paper": Suite(
        "The same under the paper's protocol",
        ("digits", "fashion rotated", "jpeg", "gaussian_noise"),
        tuple(COMPARED),
        seeds=SEEDS[:1],
        protocol="paper",
    ),
    "corruptions": Suite(
        "RQ2: against each of the fifteen corruptions",
        COMMON_CORRUPTIONS,
        ("auto", "archrepair", "network fine-tune"),
        seeds=SEEDS[:1],
    ),
    "localization": Suite(
        "RQ3: what is the blame worth, beside a random block and beside each of them?",
        ("digits", "fashion rotated", "bit flips in ResNet-18"),
        tuple(LOCALIZATIONS),
        seeds=SEEDS[:1],
        blocks={
            "digits": [f"blocks.{place}" for place in range(3)],
            "fashion rotated": [f"layer{stage}.0" for stage in (1, 2, 3)],
            "bit flips in ResNet-18": [f"layer{stage}.{place}" for stage in (1, 2, 3, 4) for place in (0, 1)],
        },
    ),
    "ablations": Suite(
        "RQ4: what is each part worth?",
        ONE_OF_EACH_FAULT,
        tuple(ABLATIONS),
        seeds=SEEDS[:1],
    ),
    "no fault": Suite(
        "Own distribution: are more than 10 % of the errors repaired with less than 0.3 % broken?",
        ("fashion", "own"),
        ("auto", "auto, at most 0.3 % broken", "network fine-tune", "weights of one block"),
    ),
    "paper sizes": Suite(
        "RQ1 and RQ2 at the paper's own sizes, by its protocol: four networks, two data sets",
        tuple(PAPER_SIZES),
        tuple(METHODS),
        seeds=SEEDS[:1],
        protocol="paper",
        needs_gpu=True,
    ),
}
