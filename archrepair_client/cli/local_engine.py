"""`--local`: the engine in a process of its own, and no service."""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from archrepair_client.errors import BadInput
from archrepair_client.specs import Submission

ENGINE = "archrepair_core"
# What a service does around a repair, which its engine knows nothing of.
OF_THE_SERVICE = ("metadata", "hardware", "timeout_seconds", "keep_days", "cache", "webhook")


def run_locally(asked: Submission, out: Path) -> int:
    """The engine's exit code: 0 the gates passed, 1 not better, 2 an error. Raises BadInput."""
    if find_spec(ENGINE) is None or find_spec("torch") is None:
        raise BadInput("--local needs the engine on this machine: pip install 'archrepair[engine]'")
    if asked.model is None:
        raise BadInput("--local needs the file of the model, not the id it has at a service")
    main_role = "test" if asked.spec.get("kind") == "evaluate" else "repair"
    if main_role not in asked.files:
        raise BadInput("--local needs --data with a file of this machine")
    ignored = sorted(set(asked.spec) & set(OF_THE_SERVICE))
    if ignored:
        raise BadInput(f"{', '.join(ignored)} mean something to a service only; leave them out with --local")
    with tempfile.TemporaryDirectory(prefix="archrepair-") as directory:
        spec = Path(directory) / "spec.json"
        spec.write_text(json.dumps(asked.spec))
        others = [f"--dataset={name}={path}" for name, path in asked.files.items() if name != main_role]
        command = [sys.executable, "-P", "-m", ENGINE, str(asked.model), str(asked.files[main_role]), *others]
        return subprocess.run([*command, "--spec", str(spec), "--out", str(out)], env=_environment()).returncode


def _environment() -> dict[str, str]:
    """Without the key: the process runs a model."""
    return {name: value for name, value in os.environ.items() if name != "ARCHREPAIR_API_KEY"}
