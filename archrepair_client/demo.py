"""`archrepair demo`: a faulty model and real images through the whole service, judged from outside."""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from archrepair_client.client import ArchRepair
from archrepair_client.running import running_service
from archrepair_client.types import Job

# The pictures are few and the lens is bad, so the customer of the demo accepts more broken answers than our default.
SPEC = {
    "kind": "repair",
    "gates": ["test.accuracy >= before + 0.05", "test.mcnemar_p < 0.05", "test.broken_rate <= 0.05"],
    "seed": 7,
    "evaluation": {"controls": "none"},  # they would take twice as long as the rest
    "metadata": {"purpose": "demo"},
}
SETS = ("repair", "validation", "test")
PERCENT_STEP = 10


def run_demo(directory: Path, *, console: Console) -> bool:
    """Make the fault, repair it over HTTP, judge the download. True only on verdict `pass`; files stay."""
    directory = directory.expanduser().absolute()
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    console.print("Training a small network on sharp handwritten digits, and photographing others out of focus …")
    _run_python("-m", "archrepair_core.demo.digits", str(directory))
    console.print("Starting broker, worker and gateway …")
    with running_service(directory / "state") as service:
        console.print(f"Sending model and images to {service.url}/v1/jobs")
        with ArchRepair(base_url=service.url, api_key=service.api_key) as client:
            job = _repair(client, directory, console)
            if job.outcome != "repaired":
                why = job.error.detail if job.error else (job.result or {}).get("reason")
                console.print(f"The job ended as {job.status}: {why}", style="red")
                return False
            client.jobs.download_model(job.id, directory / "repaired.pt")
            client.jobs.download_report(job.id, directory / "report.json", format="json")
    console.print("Judging the download with plain torch.jit.load, in a process that cannot import this project …")
    _show(job, _judge(directory), directory, seconds=time.monotonic() - started, console=console)
    return job.verdict == "pass"


def _repair(client: ArchRepair, directory: Path, console: Console) -> Job:
    shown: dict[str, Any] = {"phase": "", "percent": -100.0}

    def show(job: Job) -> None:
        progress = job.progress
        if progress and (job.phase != shown["phase"] or progress.percent >= shown["percent"] + PERCENT_STEP):
            shown.update(phase=job.phase, percent=progress.percent)
            console.print(f"  {progress.percent:5.1f} %  {job.phase:<10}  {progress.message}", highlight=False)

    files = {name: directory / f"{name}.npz" for name in SETS}
    job = client.jobs.create(model=directory / "model.pt", datasets=files, spec=SPEC)
    console.print(f"  {job.id} is {job.status}")
    return client.jobs.wait(job.id, on_change=show)


def _judge(directory: Path) -> dict[str, Any]:
    package = find_spec("archrepair_core")
    assert package is not None
    assert package.origin is not None
    judge = Path(package.origin).parent / "demo" / "judge.py"
    files = (directory / name for name in ("model.pt", "repaired.pt", "test.npz"))
    return dict(json.loads(_run_python("-I", str(judge), *map(str, files))))


def _run_python(*arguments: str) -> str:
    return subprocess.run((sys.executable, *arguments), check=True, stdout=subprocess.PIPE, text=True).stdout


def _show(job: Job, judged: dict[str, Any], directory: Path, *, seconds: float, console: Console) -> None:
    table = Table(title=f"Verdict: {job.verdict}", show_header=False)
    result = job.result or {}
    repair = result["repair"]
    rows = {
        "accuracy, original": f"{judged['accuracy_before']:.1%} of {judged['n']} test images",
        "accuracy, repaired": f"{judged['accuracy_after']:.1%}",
        "repair rate": f"{judged['repair_rate']:.1%}  ({judged['fixed']} failing inputs are right now)",
        "break rate": f"{judged['break_rate']:.1%}  ({judged['broken']} right answers are wrong now)",
        "exact McNemar p": f"{judged['p_value']:.2g}",
        "what was repaired": f"{repair['name']}, {repair['alpha']:.0%} of the way",
        "seconds": f"{result['seconds']['total']:.0f} for the job, {seconds:.0f} for the demo",
        "repaired model": str(directory / "repaired.pt"),
        "report": str(directory / "report.json"),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
