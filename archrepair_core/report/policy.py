"""What the html report may run and load: its own style and script, known by their digests, and nothing from anywhere.

The gateway serves pages that earlier releases wrote, so the digests of every release stay listed; a page that was
tampered with runs nothing.
"""

import base64
import hashlib
from importlib.resources import files

_TEMPLATES = files("archrepair_core.report") / "templates"
STYLE = (_TEMPLATES / "report.css").read_text("utf-8")
SCRIPT = (_TEMPLATES / "report.js").read_text("utf-8")


def digest_of(content: str) -> str:
    """The source expression of Content Security Policy Level 3 for an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


# Of releases before this one, newest first.
EARLIER_STYLES: tuple[str, ...] = ()
EARLIER_SCRIPTS: tuple[str, ...] = ()


def _policy(styles: tuple[str, ...], scripts: tuple[str, ...]) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src {' '.join(styles)}; script-src {' '.join(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


# Inside the page, for where it is opened from a disk.
PAGE_POLICY = _policy((digest_of(STYLE),), (digest_of(SCRIPT),))
# Before the page; these two directives only count there. The sandbox gives the page an origin of its own.
SERVED_POLICY = (
    _policy((digest_of(STYLE), *EARLIER_STYLES), (digest_of(SCRIPT), *EARLIER_SCRIPTS))
    + "; frame-ancestors 'self'; sandbox allow-scripts allow-modals"
)
