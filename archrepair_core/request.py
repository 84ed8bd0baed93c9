"""What goes into the engine and what comes out, whatever the kind of job: files and plain data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archrepair_core.errors import SpecError
from archrepair_core.spec import RepairSpec

# The report and the views that are made of it, by file name.
REPORT_FILES = {
    "report.json": "report",
    "report.html": "report_html",
    "report.md": "report_md",
    "junit.xml": "report_junit",
}


@dataclass(frozen=True)
class RepairRequest:
    """One job: the model file, dataset files by reference (`upload:NAME`), the spec, scratch and output folders.

    After `max_seconds` whoever asked ends it: what can be left out is not begun shortly before.
    """

    model: Path
    datasets: Mapping[str, Path]
    spec: RepairSpec
    work_dir: Path
    out_dir: Path
    max_seconds: float = math.inf

    def reference_model(self) -> Path | None:
        """The file of the other model that the spec names. Raises SpecError when it was not sent."""
        asked = self.spec.model.reference
        if asked is None:
            return None
        if asked not in self.datasets:
            detail = f"model.reference is {asked!r}, but no such file was given"
            raise SpecError("missing_upload", detail, hint="send the file with the request, as upload:NAME")
        return self.datasets[asked]


@dataclass(frozen=True)
class Artifact:
    """A file of the output: model, candidate, report, localization, predictions, genotype, certificate or pairs."""

    name: str
    kind: str


@dataclass(frozen=True)
class RepairOutcome:
    """What came out: `result` and `resolved_spec` are plain JSON data, `verdict` as in gates.verdict_of."""

    result: dict[str, Any]
    verdict: str
    resolved_spec: dict[str, Any]
    artifacts: tuple[Artifact, ...]
