"""What GitHub shows of a step: annotations, the summary of the step, and outputs for later steps."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from archrepair_client.ci.files import Ending

# GitHub shows ten annotations of a kind per step, and refuses a summary above 1 MiB.
MAX_ANNOTATIONS = 10
MAX_SUMMARY_BYTES = 200 * 1024
LEVELS = {"fail": "error", "inconclusive": "warning"}


def annotations_of(ending: Ending) -> Iterator[str]:
    """A workflow command per gate that did not pass; without any, one that says how it ended."""
    gates = ((ending.job.result or {}).get("gates") or []) if ending.job is not None else []
    shown = [gate for gate in gates if gate.get("state") in LEVELS][:MAX_ANNOTATIONS]
    for gate in shown:
        title = _property(f"Gate: {gate.get('expression', '')}")
        yield f"::{LEVELS[gate['state']]} title={title}::{_message(str(gate.get('reason', '')))}"
    if not shown and ending.code != 0:
        yield f"::error title=ArchRepair::{_message(ending.words)}"


def append_summary(path: Path, summary: str) -> None:
    """Add to the summary of the step, cut where GitHub would refuse all of it."""
    content = summary.encode()
    if len(content) > MAX_SUMMARY_BYTES:
        cut = content[:MAX_SUMMARY_BYTES].decode("utf-8", "ignore").rpartition("\n")[0]
        content = f"{cut}\n\nThe rest is in summary.md.\n".encode()
    with path.open("ab") as file:
        file.write(content)


def append_outputs(path: Path, outputs: Mapping[str, str]) -> None:
    """Outputs of the step, a line each."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{name}={' '.join(value.split())}\n" for name, value in outputs.items())


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
