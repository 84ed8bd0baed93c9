"""A job as commands that submit it again: for curl, Python and the command line.

The spec is told without what is a default anyway. Files that were sent with the job are named as they were called; they
have to lie where the commands are run.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from archrepair_core.spec import RepairSpec

UPLOAD = "upload:"


def snippets(
    *,
    base_url: str,
    model_id: str | None,
    spec: Mapping[str, Any],
    files: Mapping[str, str],
    around: Mapping[str, Any],
) -> dict[str, str]:
    """Commands by what runs them. `files` are the file names by the reference the spec has for each, `upload:NAME`;
    `around` is what belongs to the job and not to the repair. Raises ValidationError for a spec that is none any more.
    """
    asked = _told(spec) | dict(around)
    by_path = _with_paths(asked, files)
    return {
        "curl": _curl(base_url, asked | ({"model_id": model_id} if model_id else {}), files),
        "Python": _python(base_url, by_path, model_id),
        "CLI": _cli(base_url, by_path, model_id),
    }


def _told(spec: Mapping[str, Any]) -> dict[str, Any]:
    kept = RepairSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)
    return {"kind": spec.get("kind", "repair"), **kept}


def _with_paths(asked: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The client sends files by itself: in its specs paths stand where requests have references to their parts."""

    def replaced(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: f"./{files[value]}" if value in files else value for name, value in values.items()}

    sections = {name: replaced(asked[name]) for name in ("datasets", "model") if name in asked}
    return {**asked, **sections}


def _json_file(spec: Mapping[str, Any]) -> str:
    return f"cat > spec.json <<'SPEC'\n{json.dumps(spec, indent=2)}\nSPEC\n"


def _keys(base_url: str) -> str:
    url = f"export ARCHREPAIR_URL={shlex.quote(base_url)}"
    return f"{url}\nread -rs -p 'API key: ' ARCHREPAIR_API_KEY && export ARCHREPAIR_API_KEY\n"


def _curl(base_url: str, spec: Mapping[str, Any], files: Mapping[str, str]) -> str:
    parts = ["-F 'spec=<spec.json;type=application/json'"]
    parts += [f"-F {shlex.quote(_part(name, file))}" for name, file in files.items()]
    # From a descriptor: what stands on a command line, everybody on the machine can read.
    key = """-K <(printf 'header = "Authorization: Bearer %s"' "$ARCHREPAIR_API_KEY")"""
    command = " \\\n  ".join(['curl -sS --fail-with-body "$ARCHREPAIR_URL/v1/jobs"', key, *parts])
    return f"{_keys(base_url)}{_json_file(spec)}{command}\n"


def _python(base_url: str, spec: Mapping[str, Any], model_id: str | None) -> str:
    return (
        "import json\nfrom getpass import getpass\n\nfrom archrepair_client import ArchRepair\n\n"
        f'spec = json.loads(r"""\n{json.dumps(spec, indent=2)}\n""")\n'
        f"with ArchRepair(base_url={base_url!r}, api_key=getpass('API key: ')) as client:\n"
        f"    job = client.jobs.create_and_wait(model={model_id!r}, spec=spec)\n"
        "    print(job.id, job.status, job.verdict)\n"
    )


def _cli(base_url: str, spec: Mapping[str, Any], model_id: str | None) -> str:
    kind = spec.get("kind", "repair")
    return f"{_keys(base_url)}{_json_file(spec)}archrepair {kind} {model_id or 'MODEL'} --spec spec.json --watch\n"


def _part(reference: str, file: str) -> str:
    """Quoted for curl, to which semicolons and commas of a file name would say something."""
    quoted = file.replace("\\", "\\\\").replace('"', '\\"')
    return f'{reference.removeprefix(UPLOAD)}=@"{quoted}"'
