"""What a pipeline keeps: the report in its formats, or, of a job that left none, what happened in the same formats."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from archrepair_client.client import ArchRepair
from archrepair_client.output import gate_lines, reason_of
from archrepair_client.types import Job

# Artifact kind to the format it is asked for, and the name of its file.
REPORTS: Mapping[str, tuple[str, str]] = {
    "report_html": ("html", "report.html"),
    "report": ("json", "report.json"),
    "report_md": ("md", "summary.md"),
    "report_junit": ("junit", "junit.xml"),
}


@dataclass(frozen=True)
class Ending:
    """What came of it: the exit code, and why in words. `job` is None when none was made."""

    code: int
    words: str
    job: Job | None = None
    model: Path | None = None

    @property
    def verdict(self) -> str:
        """As GitHub's output has it."""
        return self.job.verdict if self.job is not None else "not_evaluated"


def fetch_files(client: ArchRepair, job: Job, out: Path) -> Path | None:
    """The reports and the repaired model of a job that is done; the model, when there is one."""
    kinds = {artifact.kind for artifact in job.artifacts}
    for kind, (format_, name) in REPORTS.items():
        if kind in kinds:
            client.jobs.download_report(job.id, out / name, format=format_)
    return client.jobs.download_model(job.id, out) if "model" in kinds else None


def complete_files(out: Path, ending: Ending) -> None:
    """Write the summary and the JUnit file where the job has left none."""
    if not (out / "summary.md").exists():
        (out / "summary.md").write_text(summary_of(ending), "utf-8")
    if not (out / "junit.xml").exists():
        (out / "junit.xml").write_text(junit_of(ending), "utf-8")


def remove_old(out: Path) -> None:
    """What an earlier run left must not be taken for the files of this one."""
    for _, name in REPORTS.values():
        (out / name).unlink(missing_ok=True)


def summary_of(ending: Ending) -> str:
    """The ending in Markdown."""
    lines = [f"## ArchRepair: {ending.words.partition(':')[0]}", "", ending.words, ""]
    if ending.job is not None:
        lines += [f"- {line}" for line in gate_lines((ending.job.result or {}).get("gates", []))]
        lines += [f"Job `{ending.job.id}`: {ending.job.status}, verdict {ending.job.verdict}."]
        if ending.job.error is not None and ending.job.error.log_tail:
            lines += ["", "```", *ending.job.error.log_tail, "```"]
    return "\n".join(lines) + "\n"


def junit_of(ending: Ending) -> str:
    """One case: the job. Passed with exit code 0, an error else."""
    failed = ending.code != 0
    counts = {"tests": "1", "failures": "0", "errors": str(int(failed))}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", counts, name="archrepair", skipped="0")
    case = ElementTree.SubElement(suite, "testcase", classname="archrepair", name="job", time="0")
    if failed:
        words = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in ending.words)
        ElementTree.SubElement(case, "error", type=f"exit code {ending.code}", message=words).text = words
    ElementTree.indent(suites, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def words_of(job: Job) -> str:
    """How a job ended, in a line."""
    ended = f"verdict {job.verdict}" if job.status == "succeeded" else job.status
    return ": ".join(filter(None, (ended, reason_of(job))))
