"""`archrepair doctor`: what gateway and worker find when they look at the deployment of this environment, together.

Each looks for itself, in a process of its own; what both look at is told once.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from archrepair_client.running import RunningService, find_service
from archrepair_client.up import PYTHON, SERVER_URLS

DOCTORS = ("app.doctor", "worker.doctor")
LOOK_SECONDS = 300.0
STYLES = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}
Findings = dict[str, dict[str, str]]


class NoAnswer(Exception):
    """A doctor did not come to an end, and what it said instead."""


def run_doctor(*, state_dir: Path, host: str, port: int, as_json: bool) -> bool:
    """Look, and print. False when something failed. Raises NoAnswer."""
    state_dir = state_dir.expanduser().absolute()
    is_embedded = not any(os.environ.get(name) for name in SERVER_URLS)
    service = find_service(state_dir) if is_embedded else None
    if service is not None:
        parts = urlsplit(service.url)
        host, port = parts.hostname or host, parts.port or port
    environment = {
        **os.environ,
        "ARCHREPAIR_STATE_DIR": str(state_dir),
        "ARCHREPAIR_HOST": host,
        "ARCHREPAIR_PORT": str(port),
    }
    with ThreadPoolExecutor(len(DOCTORS)) as pool:
        answers = list(pool.map(lambda module: _ask(module, environment), DOCTORS))
    findings: Findings = {}
    for answer in answers:
        for finding in answer["checks"]:
            findings.setdefault(finding["name"], finding)
    if service is not None:
        findings |= _of_service(service)
    _show(findings, answers[0], as_json=as_json)
    return all(finding["status"] != "fail" for finding in findings.values())


def _ask(module: str, environment: Mapping[str, str]) -> dict[str, Any]:
    command = (*PYTHON, module, "--json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LOOK_SECONDS)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise NoAnswer(f"python -m {module} ended with code {done.returncode}: {done.stderr[-2000:]}") from None


def _of_service(service: RunningService) -> Findings:
    """What only a running service knows: the broker it has brought."""
    try:
        with service.client(timeout_seconds=10) as client:
            broker = client.get("/readyz").json()["checks"]["broker"]
    except (httpx.HTTPError, OSError, ValueError, KeyError):
        detail = f"service.json says it is up at {service.url} (pid {service.pid}), but it does not answer"
        hint = "If it is gone, `archrepair up` starts it again; else see logs/gateway.log in the state directory."
        return {"service": {"name": "service", "status": "fail", "detail": detail, "hint": hint}}
    found = {"name": "broker", "status": "ok", "detail": "the one of `archrepair up` answers", "hint": ""}
    if broker != "ok":
        hint = "See logs/broker.log in the state directory; `archrepair up` starts it again by itself."
        found |= {"status": "fail", "detail": f"the one of `archrepair up`: {broker}", "hint": hint}
    return {"broker": found}


def _show(findings: Findings, head: Mapping[str, Any], *, as_json: bool) -> None:
    statuses = {finding["status"] for finding in findings.values()}
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        worst = next(status for status in ("fail", "warn", "ok") if status in statuses)
        whole = {**head, "status": worst, "checks": list(findings.values())}
        console.out(json.dumps(whole, ensure_ascii=False, indent=2), highlight=False)
        return
    width = max(map(len, findings))
    for name, finding in findings.items():
        word, style = STYLES[finding["status"]]
        hint = f"  → {finding['hint']}" if finding["hint"] else ""
        console.print(word, end="", style=style)
        console.print(f"  {name:<{width}}  {finding['detail']}{hint}", markup=False)
