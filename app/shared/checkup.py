"""A look at a deployment: checks, what each found and what to do about it, one line per check or all as JSON.

What is printed here ends up in tickets and chats: whatever a library says, no secret of the settings is in it.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.shared.settings import Settings

Status = Literal["ok", "warn", "fail"]
WORST_FIRST: tuple[Status, ...] = ("fail", "warn", "ok")
SHOWN = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
HIDDEN = "***"
_SECRET_ENDINGS = ("PASSWORD", "SECRET", "SECRET_KEY", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "_TOKEN", "API_KEY")
_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Finding:
    """What one check found. `hint` says what to do, and is empty where there is nothing to do."""

    name: str
    status: Status
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Check:
    """`look` gives a finding without a name. It is only asked when the check it `needs` was well."""

    name: str
    look: Callable[[Settings], Finding]
    needs: str = ""


def ok(detail: str) -> Finding:
    """All is well."""
    return Finding("", "ok", detail)


def warn(detail: str, hint: str) -> Finding:
    """It runs, but not as it should, or not for long."""
    return Finding("", "warn", detail, hint)


def fail(detail: str, hint: str) -> Finding:
    """It does not run."""
    return Finding("", "fail", detail, hint)


def failed_with(error: BaseException, hint: str) -> Finding:
    """A failure in the words of the library that met it; those of Rust add pages for their authors."""
    said = " ".join(str(error).partition("\n\nDebug source")[0].split())
    return fail(f"{type(error).__name__}: {said[:_MOST_CHARACTERS]}", hint)


def examine(checks: Sequence[Check], environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """All findings, that of the settings first: without them nothing else can be asked."""
    secrets = secrets_of(environment)
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        hint = "Set what is named; docs/operation.md has a table of all settings."
        return [_clean(failed_with(error, hint), "settings", secrets)]
    findings = [replace(_described(settings), name="settings")]
    for check in checks:
        well = {finding.name for finding in findings if finding.status == "ok"}
        findings.append(_clean(_ask(check, settings, well), check.name, secrets))
    return findings


def _ask(check: Check, settings: Settings, well: set[str]) -> Finding:
    if check.needs and check.needs not in well:
        return warn("not asked", f"See {check.needs}, without which it cannot be asked.")
    try:
        return check.look(settings)
    except Exception as error:  # noqa: BLE001  the border of one check: the others have more to tell
        return failed_with(error, "The check itself broke; the words above are all it knows.")


def _described(settings: Settings) -> Finding:
    kind = "embedded" if settings.database_url.startswith("sqlite") else "production"
    return ok(f"{kind}, version {version('archrepair')}, state in {settings.state_dir}")


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """What must not be shown: passwords in URLs, and what is called a secret, key or token. The longest first."""
    values = [value for name, value in environment.items() if name.endswith(_SECRET_ENDINGS)]
    for value in environment.values():
        if "://" in value:
            values += [form for password in _passwords(value) for form in (password, unquote(password))]
    return sorted({value for value in values if value}, key=len, reverse=True)


def _passwords(url: str) -> Iterator[str]:
    """Before the host, and in the query, where libpq and Redis take one too."""
    try:
        parts = urlsplit(url)
    except ValueError:  # not a URL: then whatever stands between : and @
        yield url.rpartition("@")[0].rpartition(":")[2]
        return
    yield parts.password or ""
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if name.lower().endswith("password"):
            yield value


def _clean(finding: Finding, name: str, secrets: Sequence[str]) -> Finding:
    detail, hint = finding.detail, finding.hint
    for secret in secrets:
        detail, hint = detail.replace(secret, HIDDEN), hint.replace(secret, HIDDEN)
    return Finding(name, finding.status, detail, hint)


def worst(findings: Sequence[Finding]) -> Status:
    """The status of the whole."""
    return next(status for status in WORST_FIRST if status in {finding.status for finding in findings} | {"ok"})


def as_json(findings: Sequence[Finding]) -> str:
    """All of it, for programs."""
    checks = [asdict(finding) for finding in findings]
    whole = {"object": "checkup", "status": worst(findings), "version": version("archrepair"), "checks": checks}
    return json.dumps(whole, ensure_ascii=False, indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """A line per finding."""
    width = max(len(finding.name) for finding in findings)
    lines = (
        f"{SHOWN[finding.status]}  {finding.name:<{width}}  {finding.detail}"
        + (f"  → {finding.hint}" if finding.hint else "")
        for finding in findings
    )
    return "\n".join(lines)


def main(checks: Sequence[Check], words: Sequence[str]) -> None:
    """A doctor's command: prints, and ends with 1 when anything failed. The only option is --json."""
    if unknown := set(words) - {"--json"}:
        sys.exit(f"there is no option {' '.join(sorted(unknown))}: the only one is --json")
    # libpq's own default is to wait for as long as the kernel does, minutes.
    os.environ.setdefault("PGCONNECT_TIMEOUT", "5")
    findings = examine(checks)
    print(as_json(findings) if "--json" in words else as_text(findings))  # noqa: T201  the answer of this command
    sys.exit(worst(findings) == "fail")
