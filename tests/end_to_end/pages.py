"""The code blocks of the documentation, and what is done with each.

A block says its language. `text` is what is seen, not done. A block with `title="NAME"` is that file. Above a block may
stand what readers of the page do not see: `<!-- not run: REASON -->`, for what cannot be run here (it is checked all
the same), or `<!-- first: SHELL -->`, for what a reader at this place would have done before.

Sybil, pytest-examples and mktestdocs were looked at: they run a block by itself, or Python alone; what has to hold here
is a page, whose shell, files and Python build on each other beside one service.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"bash", "python", "json", "yaml", "toml", "text"}
BLOCK = re.compile(
    r"(?:^<!-- (?P<rule>not run|first): (?P<said>[^\n]*) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<content>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block of one page; `line` is that of its fence."""

    page: str
    line: int
    language: str
    content: str
    title: str | None = None
    not_run: str | None = None
    first: str | None = None

    @property
    def place(self):
        return f"{self.page}:{self.line}"


def blocks_of(path):
    """The blocks of a page, in order."""
    text = path.read_text()
    found = []
    for match in BLOCK.finditer(text):
        rules = {match["rule"]: match["said"]} if match["rule"] else {}
        line = text.count("\n", 0, match.start("language")) + 1
        block = Block(path.relative_to(ROOT).as_posix(), line, match["language"], match["content"], match["title"],
                      rules.get("not run"), rules.get("first"))  # fmt: skip
        found.append(block)
    assert len(found) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), f"{path}: a fence that is not understood"
    return found


def script_of(blocks):
    """One script that does what the page says, from top to bottom; what is not run is left out.

    Python blocks that follow each other are one program.
    """
    parts, program = ["set -euo pipefail"], []

    def end_program():
        if program:
            parts.append(_heredoc("python -P -", "".join(program)))
            program.clear()

    for block in blocks:
        if block.not_run is not None or block.language == "text":
            continue
        if block.language == "python" and block.title is None:
            program.append(block.content)
            continue
        end_program()
        parts += [f"echo '== {block.place}' >&2", *([block.first] if block.first else [])]
        if block.title is not None:
            parts.append(_heredoc(f"cat > {block.title}", block.content))
        elif block.language == "bash":
            parts.append(block.content.rstrip())
    end_program()
    return "\n".join(parts)


def _heredoc(command, content):
    return f"{command} <<'END_OF_BLOCK'\n{content}END_OF_BLOCK"
