import hashlib
import re
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import app.ui.queue
from app.main import create_app
from app.shared.tables import Job
from app.ui.dashboard import STATIC
from tests.app.ui.conftest import OWN_PAGE, sign_in
from tests.app.ui.test_access import PAGES

ROOT = Path(__file__).parents[3]
MARKUP = '"><script>alert(1)</script>'
# What a strict policy forbids, and what a template that forgot to escape would let through.
INLINE = re.compile(r"""<script(?![^>]*\ssrc=)|\sstyle=|\son[a-z]+\s*=|javascript:""", re.IGNORECASE)
REPORT = b"<!doctype html><title>Repair report</title>"


@pytest.fixture
def done(submit, finish):
    """A job that has ended with a report and a result."""
    job = submit()
    accuracy = {"before": 0.5, "after": 0.75, "after_ci95": [0.7, 0.8], "change": 0.25, "change_ci95": [0.2, 0.3]}
    rate = {"value": 0.25, "ci95": [0.1, 0.4]}
    test = {"accuracy": accuracy, "repair_rate": rate, "broken_rate": rate, "broken": 1, "mcnemar_p": 0.001,
            "worst_class": None}  # fmt: skip
    edges = [
        {"from": "input", "to": "1", "operation": "sep_conv_3x3"},
        {"from": "1", "to": "output", "operation": MARKUP},
    ]
    gate = {"expression": "test.accuracy > before", "state": "pass", "reason": "it is", "observed": 0.25, "limit": 0.0}
    repair = {"name": "layer1 + cell", "scope": ["layer1"], "edits": [{"block": "layer1", "edges": edges}]}
    result = {"outcome": "repaired", "reason": "better", "test": test, "gates": [gate], "repair": repair,
              "blocks_repaired": ["layer1"], "seconds": {"total": 12.5}, "cost": {"params_ratio": 1.1}}  # fmt: skip
    finish(job["id"], files=[("report.html", "report_html", REPORT)], result=result, verdict="pass")
    return job


@pytest.mark.parametrize("path", [*PAGES, "/ui/sign-in", "/ui/nothing", "/ui/jobs?status=wrong"])
def test_nothing_on_a_page_is_inline_or_from_elsewhere(browser, submit, path):
    submit()
    answer = browser.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not INLINE.search(answer.text)
    assert not re.findall(r"(?:src|href|action)=\"(?:https?:)?//", answer.text)


def test_what_customers_write_stays_text(browser, submission, gateway, done):
    files = submission({"datasets": {"repair": "upload:repair"}, "metadata": {MARKUP: MARKUP}})
    files[1] = ("model", (f"{MARKUP}.pt", files[1][1][1], "application/octet-stream"))
    job = gateway.client.post("/v1/jobs", files=files).json()
    pages = [
        "/ui/jobs",
        f"/ui/jobs/{job['id']}",
        f"/ui/models/{job['model_id']}",
        "/ui/models",
        f"/ui/jobs/{done['id']}",
    ]
    for path in [
        *pages,
        f"/ui/jobs?metadata[{MARKUP}]={MARKUP}",
        f"/ui/new?model_id={MARKUP}",
        f"/ui/sign-in?next={MARKUP}",
    ]:
        answer = browser.get(path)
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.text, path
        assert not INLINE.search(answer.text), path


def test_the_list_is_narrowed_by_its_url_and_empty_fields_ask_for_nothing(browser, submit, done):
    waiting = submit()
    page = browser.get("/ui/jobs?status=queued&kind=&verdict=&model_id=").text
    assert waiting["id"] in page
    assert done["id"] not in page
    assert done["id"] in browser.get("/ui/jobs?verdict=pass").text
    assert "No job fits" in browser.get("/ui/jobs?metadata[nobody]=said").text
    refused = browser.get("/ui/jobs?status=wrong")
    assert (refused.status_code, "query status" in refused.text) == (422, True)


def test_pages_of_the_list_follow_each_other(browser, submit):
    first, second = submit(), submit()
    page = browser.get("/ui/jobs?limit=1")
    assert second["id"] in page.text
    (older,) = re.findall(r'rel="next" href="([^"]+)"', page.text)
    assert first["id"] in browser.get("/ui/jobs" + older.replace("&amp;", "&")).text


def test_a_job_shows_what_it_has_found(browser, done):
    page = browser.get(f"/ui/jobs/{done['id']}").text
    for words in ("75.00 %", "test.accuracy &gt; before", "In the place of", "sep_conv_3x3", "Report", "Run again"):
        assert words in page, words
    assert "Cancel" not in page


def test_a_spec_of_an_earlier_release_leaves_its_job_a_page(browser, submit, gateway_sessions):
    job = submit()
    assert "archrepair_client" in browser.get(f"/ui/jobs/{job['id']}").text
    with gateway_sessions.begin() as session:
        session.get_one(Job, job["id"]).spec = {"datasets": {"repair": "upload:repair"}, "knob_of_old": 1}
    page = browser.get(f"/ui/jobs/{job['id']}")
    assert (page.status_code, "archrepair_client" in page.text) == (200, False)


def test_the_report_is_framed_in_a_sandbox_with_a_policy_of_its_own(browser, done):
    page = browser.get(f"/ui/jobs/{done['id']}/report").text
    (frame,) = re.findall(r"<iframe[^>]+>", page)
    assert "allow-scripts" in frame
    assert "allow-same-origin" not in frame
    (source,) = re.findall(r'src="([^"]+)"', frame)
    answer = browser.get(source)
    assert answer.content == REPORT
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert "sandbox allow-scripts" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]


def test_a_job_without_a_report_says_so(browser, submit):
    assert "There is no report yet" in browser.get(f"/ui/jobs/{submit()['id']}/report").text


def test_jobs_are_compared_in_the_order_asked_for(browser, done, submit):
    other = submit()
    page = browser.get("/ui/compare", params={"id": [other["id"], done["id"], other["id"]]}).text
    assert re.findall(r'scope="col"><a class="id" href="/ui/jobs/(\w+)"', page) == [other["id"], done["id"]]
    assert "50.00 % → 75.00 %" in page
    assert browser.get("/ui/compare", params={"id": ["job"] * 7}).status_code == 422


def test_a_model_shows_where_it_came_from_and_what_came_of_it(browser, gateway, submission, submit, finish):
    job = submit()
    made = b"PK\x03\x04 repaired"
    finish(job["id"], files=[("repaired.pt", "model", made)], result={"outcome": "repaired"}, verdict="pass")
    again = gateway.client.post("/v1/models", files={"model": ("repaired.pt", made)}).json()
    assert job["id"] in browser.get(f"/ui/models/{again['id']}").text
    assert again["id"] in browser.get(f"/ui/models/{job['model_id']}").text


def test_the_form_offers_what_the_schema_has(browser):
    page = browser.get("/ui/new").text
    for path in (
        "kind",
        "datasets.repair",
        "repair.method",
        "repair.budget_seconds",
        "localization.top_k",
        "gates",
        "seed",
    ):
        assert f'data-path="{path}"' in page, path
    (method,) = re.findall(r'<select id="f-repair.method".*?</select>', page, re.DOTALL)
    assert {"bn", "align", "weights", "block_search", "archrepair"} <= set(re.findall(r">([a-z_]+)</option>", method))


def test_static_files_are_kept_by_browsers_until_they_change(browser):
    paths = re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', browser.get("/ui/new").text)
    assert len(paths) >= 5
    for path in paths:
        answer = browser.get(path)
        content = (STATIC / path.partition("?")[0].rpartition("/")[2]).read_bytes()
        assert answer.content == content
        assert path.endswith(hashlib.sha256(content).hexdigest()[:12])
        assert "immutable" in answer.headers["cache-control"]
        assert browser.get(path.partition("?")[0]).headers["cache-control"] == "no-cache"
    assert browser.get("/ui/static/../dashboard.py").status_code == 404


@pytest.mark.parametrize("directory", [STATIC, ROOT / "tests" / "browser" / "vendor"])
def test_what_others_wrote_is_as_they_published_it(directory):
    files = tomllib.loads((directory / "vendored.toml").read_text())["file"]
    assert {path.name for path in directory.glob("*.min.js")} == {file["path"] for file in files}
    for file in files:
        assert hashlib.sha256((directory / file["path"]).read_bytes()).hexdigest() == file["sha256"]


def test_pages_are_counted_by_their_template_below_ui(browser, gateway, submit):
    job = submit()
    browser.get(f"/ui/jobs/{job['id']}")
    counted = gateway.client.get("/metrics").text
    assert 'route="/ui/jobs/{job_id}"' in counted
    assert job["id"] not in counted


def test_the_document_of_the_api_knows_nothing_of_pages(gateway):
    assert not [path for path in gateway.client.get("/openapi.json").json()["paths"] if "/ui" in path]


def test_a_page_that_crashes_tells_its_request_and_nothing_else(embedded, tmp_path, monkeypatch):
    def crash(*_: object) -> None:
        raise ZeroDivisionError("secret internals")

    monkeypatch.setattr(app.ui.queue, "get_system", crash)
    settings = embedded.fresh(tmp_path / "state")
    with TestClient(create_app(settings), headers=OWN_PAGE, follow_redirects=False) as client:
        assert sign_in(client, (settings.state_dir / "api-key").read_text().strip()).status_code == 303
        answer = client.get("/ui/queue")
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.text
    assert "secret" not in answer.text
