"""`python -m benchmarks SUITE ...`: run what is missing of these suites. `--cases`, `--rows`, `--seeds` narrow them."""

import argparse
import sys
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches

import torch

from benchmarks.cases import CASES
from benchmarks.methods import ONE_BLOCK, ROWS
from benchmarks.results import draw_of, key_of, read_published, right_before
from benchmarks.run import missing_of, run_all
from benchmarks.suites import SUITES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites in the order named, all of them where none is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="which questions to answer (all)")
    parser.add_argument(
        "--cases", nargs="+", type=case_called, metavar="CASE", help="of benchmarks/cases.py, instead of the suite's"
    )
    parser.add_argument(
        "--rows", nargs="+", type=row_called, metavar="ROW", help="methods of benchmarks/methods.py, or block=NAME"
    )
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--budget", type=float, help="seconds of every row; such runs are kept apart")
    parser.add_argument("--again", action="store_true", help="also what has run here or is published")
    options = parser.parse_args(argv)
    rows = read_published()
    published, networks = [key_of(row) for row in rows], {draw_of(row): right_before(row) for row in rows}
    suites = [
        replace(
            suite,
            cases=options.cases or suite.cases,
            methods=options.rows or suite.methods,
            seeds=options.seeds or suite.seeds,
            seconds=options.budget or suite.seconds,
        )
        for suite in (SUITES[name] for name in options.suites or _runnable())
    ]
    runs = list(dict.fromkeys(run for suite in suites for run in suite.runs()))
    run_all(runs if options.again else missing_of(runs, published, networks))
    return 0


def case_called(name: str) -> str:
    """The name, where it is that of a case; a short answer where it is not, for there are a hundred."""
    return _one_of(name, CASES, what="case", where="benchmarks/cases.py")


def row_called(name: str) -> str:
    """The name, where it is that of a row, or one block's."""
    return name if name.startswith(ONE_BLOCK) else _one_of(name, ROWS, what="row", where="benchmarks/methods.py")


def _one_of(name: str, known: Collection[str], *, what: str, where: str) -> str:
    if name in known:
        return name
    near = ", ".join(map(repr, get_close_matches(name, known, cutoff=0.4)))
    raise argparse.ArgumentTypeError(
        f"no {what} is called {name!r}; " + (f"did you mean {near}?" if near else f"{where} has them")
    )


def _runnable() -> list[str]:
    """All suites, but for those that would take days here."""
    if torch.cuda.is_available():
        return list(SUITES)
    for name in (name for name, suite in SUITES.items() if suite.needs_gpu):
        sys.stderr.write(f"{name}: left out, as there is no GPU here; `python -m benchmarks '{name}'` runs it anyway\n")
    return [name for name, suite in SUITES.items() if not suite.needs_gpu]


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*torch.jit")  # writing TorchScript is what these models are for
    sys.exit(main())
