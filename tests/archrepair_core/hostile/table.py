"""`python -m tests.archrepair_core.hostile.table`: runs the gate over its corpus and prints kind, answer, milliseconds.

With `--write` the list in docs/security.md is written anew.
"""

import sys
import tempfile
import time
from pathlib import Path

from archrepair_core.errors import ModelError
from archrepair_core.ingest.inspect import inspect_archive
from tests.archrepair_core.hostile.archives import Canary
from tests.archrepair_core.hostile.kinds import ENDED_BY_THE_ENGINE, REFUSED, REFUSED_BY_THE_GATE

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
BEGIN, END = "<!-- corpus: begin -->\n", "<!-- corpus: end -->\n"


def corpus_list() -> str:
    """The corpus as markdown, by what answers it and the code of the answer."""
    lines = []
    for part, table in REFUSED.items():
        lines.append(f"\n**Refused by the gate, {part}** ({len(table)})\n")
        lines += [f"- {kind}: `model.{code}`" for kind, (_, code, _) in table.items()]
    lines.append(f"\n**Ended by the engine** ({len(ENDED_BY_THE_ENGINE)})\n")
    lines += [f"- {kind}: `{code}`" for kind, (_, code, _) in ENDED_BY_THE_ENGINE.items()]
    return "\n".join(lines) + "\n\n"


def documented_list(page: str) -> str:
    """What the page has between the markers."""
    return page.split(BEGIN, 1)[1].split(END, 1)[0]


def main() -> None:
    """Print what the gate answers today, and how long that took."""
    if "--write" in sys.argv:
        page = PAGE.read_text("utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(before + BEGIN + corpus_list() + END + after, "utf-8")
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.pt")
        for kind, (build, _, _) in REFUSED_BY_THE_GATE.items():
            path.write_bytes(build(Canary(f"{directory}/canary", 1)))
            started_at = time.perf_counter()
            answer = _answer(path)
            milliseconds = (time.perf_counter() - started_at) * 1000
            print(f"{kind:50} {answer:30} {milliseconds:8.1f} ms")


def _answer(path: Path) -> str:
    try:
        inspect_archive(path)
    except ModelError as error:
        return error.code
    return "accepted"


if __name__ == "__main__":
    main()
