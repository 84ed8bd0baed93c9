"""`python -m worker.doctor [--json]`: is this worker's deployment well? Ends with 1 when something is not."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.store import from_url
from pydantic import ValidationError

from app.shared.checks import SHARED, check_disk
from app.shared.checkup import Check, Finding, fail, failed_with, main, ok, warn
from app.shared.settings import GIB, Settings
from app.shared.workers import CPU, GPU
from archrepair_core.sandbox.sandbox import describe_layers, missing_layers
from worker.engine_process import engine_environment
from worker.hardware import WorkerSettings, choose_device, queues_of
from worker.limits import EngineLimits
from worker.scratch import scratch_root

TORCH_SECONDS = 120.0
# In a process of its own, as for a job: this one never imports torch.
ASK_TORCH = """
import json, torch, torchvision
cuda = torch.cuda.is_available()
device = "cuda" if cuda else "cpu"
assert float((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum()) == 512
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__, "gpus": names}))
"""


def check_worker_settings(_settings: Settings) -> Finding:
    """Queues and limits of engines can be read, and the GPU is where they say."""
    try:
        worker, limits = WorkerSettings(), EngineLimits()
    except ValidationError as error:
        return failed_with(error, "Set what is named; docs/operation.md has a table of all settings.")
    device = choose_device(worker)
    queues = queues_of(worker, device)
    hours = limits.max_runtime_seconds / 3600
    detail = f"serves {', '.join(queues)} on {device}; a job may run {hours:g} h"
    if GPU in queues and device == CPU:
        return fail(f"serves the queue gpu without a GPU: {detail}", "Give it one, or set ARCHREPAIR_QUEUES=cpu.")
    return ok(detail)


def check_torch(_settings: Settings) -> Finding:
    """The engine's torch computes, on the GPU where there is one."""
    device = choose_device(WorkerSettings())
    try:
        found = json.loads(_python(ASK_TORCH, engine_environment(os.environ)))
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["no word"])[-1]
        return fail(f"torch does not compute: {last_line}", "Install the engine: pip install 'archrepair[engine]'.")
    except subprocess.TimeoutExpired:
        return fail(f"torch was not imported within {TORCH_SECONDS:g} s", "Look at disk and processor of this host.")
    detail = f"torch {found['torch']}, torchvision {found['torchvision']}, on {', '.join(found['gpus']) or CPU}"
    if device != CPU and not found["gpus"]:
        hint = "Install a torch built for CUDA, a driver as new as it needs, and let the container see the GPU."
        return fail(f"{device} is there, but torch cannot use it: {detail}", hint)
    return ok(detail)


def _python(code: str, environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TORCH_SECONDS, check=True)
    return done.stdout


def check_sandbox(_settings: Settings) -> Finding:
    """This kernel can close an engine off."""
    mode = EngineLimits().sandbox
    if mode == "off":
        return warn("switched off", "Set ARCHREPAIR_ENGINE_SANDBOX=required, unless all models are your own.")
    gaps = missing_layers()
    if not gaps:
        return ok(f"{mode}: files and system calls can be closed")
    hint = "Use Linux >= 5.13 with Landlock and seccomp, and a container runtime that lets their calls through."
    return (fail if mode == "required" else warn)(f"{mode}: {describe_layers(gaps)}", hint)


def check_scratch(settings: Settings) -> Finding:
    """Jobs have room to run."""
    return check_disk(scratch_root(settings), little_bytes=2 * settings.dataset_bytes, least_bytes=GIB)


def check_roots(settings: Settings) -> Finding:
    """Directories the operator opened are there, and may be read."""
    bad = [root for root in settings.dataset_roots if not (Path(root).is_dir() and os.access(root, os.R_OK | os.X_OK))]
    if bad:
        hint = "Mount them on the workers, readable for their user, or take them out of ARCHREPAIR_DATASET_ROOTS."
        return fail(f"not there, or not to be read: {', '.join(bad)}", hint)
    return ok(f"{len(settings.dataset_roots)} directories open")


def check_buckets(settings: Settings) -> Finding:
    """Buckets the operator opened may be read."""
    bad = [words for bucket in settings.dataset_buckets if (words := _unreadable(bucket))]
    if bad:
        hint = "Check ARCHREPAIR_DATASET_BUCKETS, and that the workers' keys may read and list there."
        return warn("; ".join(bad), hint)
    return ok(f"{len(settings.dataset_buckets)} buckets open")


def _unreadable(bucket: str) -> str:
    """Why, in a few words; empty for one that answers."""
    parts = urlsplit(bucket)
    try:
        store = from_url(f"{parts.scheme}://{parts.netloc}")
        next(iter(obstore.list(store, unquote(parts.path).strip("/") or None, chunk_size=1)), None)
    except (StoreError, FileNotFoundError, ValueError) as error:
        return f"{bucket}: {type(error).__name__}"
    return ""


CHECKS = (
    *SHARED,
    Check("queues", check_worker_settings),
    Check("torch", check_torch, needs="queues"),
    Check("sandbox", check_sandbox, needs="queues"),
    Check("scratch disk", check_scratch),
    Check("dataset roots", check_roots),
    Check("dataset buckets", check_buckets),
)

if __name__ == "__main__":
    main(CHECKS, sys.argv[1:])
