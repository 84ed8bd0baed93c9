"""The site of the documentation, as `make docs` builds it."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from app.errors import PROBLEMS
from app.main import create_app
from tests.end_to_end.pages import ROOT

# What a browser fetches by itself, by the attribute that says where.
FETCHED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
PICTURES = ROOT / "docs" / "pictures"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", directory]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


class Fetches(HTMLParser):
    """Collects what a page has its browser fetch."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        if (address := dict(attrs).get(FETCHED.get(tag, ""))) is not None:
            self.addresses.append(address)


def test_it_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        fetches = Fetches()
        fetches.feed(page.read_text())
        assert len(fetches.addresses) > 3
        assert [address for address in fetches.addresses if re.match(r"(https?:)?//", address)] == [], page
        # For such a block the theme would fetch its library.
        assert 'class="mermaid"' not in page.read_text()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_reference_has_every_path_and_code(site):
    reference, codes = ((site / "reference" / name).read_text() for name in ("http.html", "errors.html"))
    for path, methods in create_app().openapi()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in reference
    assert [code for code in PROBLEMS if f"<code>{code}</code>" not in codes] == []


def test_the_reference_says_what_a_method_gives(site):
    page = re.sub("<[^>]+>", "", (site / "reference" / "python.html").read_text())
    assert "retrieve(job_id: str) -&gt; Job" in page
    assert "Steps[" not in page


def test_the_pictures_are_those_of_their_numbers():
    spec = importlib.util.spec_from_file_location("draw", PICTURES / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    job = draw.json.loads((PICTURES / "job.json").read_text())
    for name, picture in draw.PICTURES.items():
        assert (PICTURES / name).read_text() == picture(job), f"{name}: run python docs/pictures/draw.py"
