"""Whether the methods stand in the published order here too: `python -m benchmarks.ordering`, after suite `quick`."""

import sys

import numpy as np
from scipy.stats import kendalltau

from benchmarks.comparisons import Grouped, group, mean_of
from benchmarks.methods import METHODS
from benchmarks.ranks import Floats, rank_methods
from benchmarks.results import read_published, read_runs
from benchmarks.suites import SUITES


def mean_ranks(grouped: Grouped, cases: list[str], methods: list[str]) -> Floats:
    """Mean rank of every method over the cases, 1 the best."""
    accuracy = [[mean_of(grouped[case][method], "accuracy_after") for method in methods] for case in cases]
    return rank_methods(np.array(accuracy)).mean_ranks_M


def main() -> int:
    """Print both orders, and how far they agree."""
    quick = SUITES["quick"]
    here = group(read_runs(), METHODS, seconds=quick.seconds)
    there = group(read_published(), METHODS)
    methods = [
        name for name in quick.methods if all(name in at.get(case, {}) for at in (here, there) for case in quick.cases)
    ]
    if len(methods) < 3:
        print(f"only {len(methods)} methods of the suite `quick` have run here and are published; 3 are the least")
        return 1
    own, published = (mean_ranks(at, list(quick.cases), methods) for at in (here, there))
    print("| method | mean rank here | published |\n|---|---|---|")
    for place in np.argsort(published, kind="stable"):
        print(f"| {methods[place]} | {own[place]:.1f} | {published[place]:.1f} |")
    tau = kendalltau(own, published)
    best = {methods[int(np.argmin(ranks))] for ranks in (own, published)}
    agreement = f"the best is {best.pop()} in both" if len(best) == 1 else "the best differ"
    print(f"\n{quick.seconds:.0f} s a job here, the seconds of each case there")
    print(f"{', '.join(quick.cases)}: Kendall's tau {tau.statistic:.2f}, p = {tau.pvalue:.2g}; {agreement}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
