import base64
import hashlib

import pytest

from app.shared.storage import delete, open_store
from app.shared.tables import Job

REPAIRED = bytes(range(256)) * 4000
REPORT = b'{"verdict": "pass"}'
HTML = b"<!doctype html>"
VIEWS = [
    ("report.json", "report", REPORT),
    ("report.html", "report_html", HTML),
    ("report.md", "report_md", b"## Repair"),
    ("junit.xml", "report_junit", b"<testsuites/>"),
]


@pytest.fixture
def repaired_job(submit, finish) -> dict:
    """A job that ended with a repaired model, a report and a log."""
    job = submit()
    files = [("repaired.pt", "model", REPAIRED), *VIEWS, ("engine.log", "log", b"a line\n")]
    finish(job["id"], files=files, verdict="pass", result={"outcome": "repaired", "recommended": True})
    return job


def test_the_repaired_model_comes_under_the_name_of_the_upload(gateway, repaired_job):
    answer = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/model")
    sha256 = hashlib.sha256(REPAIRED)
    assert (answer.status_code, answer.content) == (200, REPAIRED)
    assert 'filename="resnet18.repaired.pt"' in answer.headers["content-disposition"]
    assert answer.headers["etag"] == f'"{sha256.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
    assert answer.headers["content-length"] == str(len(REPAIRED))


def test_artifacts_are_listed_with_the_link_to_their_bytes(gateway, repaired_job):
    page = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/artifacts").json()
    shown = {item["kind"]: item for item in page["data"]}
    assert set(shown) == {"model", "log", *(kind for _, kind, _ in VIEWS)}
    assert shown["model"]["sha256"] == hashlib.sha256(REPAIRED).hexdigest()
    assert gateway.client.get(shown["report"]["links"]["content"]).content == REPORT
    assert gateway.client.get(f"/v1/jobs/{repaired_job['id']}").json()["artifacts"] == page["data"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=1000000-", 1_000_000, 1_024_000), ("bytes=-5", 1_023_995, 1_024_000),
     ("bytes=10-99999999", 10, 1_024_000)],
)  # fmt: skip
def test_a_broken_download_is_resumed_by_range(gateway, repaired_job, asked, start, stop):
    answer = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/model", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, REPAIRED[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(REPAIRED)}"


def test_a_range_of_another_version_or_kind_gives_the_whole_file(gateway, repaired_job):
    path = f"/v1/jobs/{repaired_job['id']}/model"
    for headers in (
        {"Range": "bytes=0-9", "If-Range": '"other"'},
        {"Range": "bytes=0-1,4-5"},
        {"Range": "bytes=9-0"},
        {"Range": "lines=0-9"},
    ):
        assert gateway.client.get(path, headers=headers).status_code == 200
    etag = gateway.client.get(path).headers["etag"]
    assert gateway.client.get(path, headers={"Range": "bytes=0-9", "If-Range": etag}).status_code == 206


def test_a_range_outside_of_the_file_is_refused_with_its_size(gateway, repaired_job):
    answer = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/model", headers={"Range": "bytes=1024000-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1024000")
    assert answer.json()["code"] == "request.range_not_satisfiable"


def test_a_file_the_client_has_is_not_sent_again(gateway, repaired_job):
    path = f"/v1/jobs/{repaired_job['id']}/model"
    etag = gateway.client.get(path).headers["etag"]
    answer = gateway.client.get(path, headers={"If-None-Match": f'"x", {etag}'})
    assert (answer.status_code, answer.content) == (304, b"")


@pytest.mark.parametrize(
    ("accept", "format_", "media_type", "content"),
    [
        (None, None, "application/json", REPORT),
        ("*/*", None, "application/json", REPORT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", None, "text/html; charset=utf-8", HTML),
        ("text/markdown", None, "text/markdown; charset=utf-8", b"## Repair"),
        ("application/xml", None, "application/xml", b"<testsuites/>"),
        ("text/*;q=0.5, application/json;q=0.4", None, "text/html; charset=utf-8", HTML),
        ("text/html;q=0, */*;q=0.1", None, "application/json", REPORT),
        ("image/png", "junit", "application/xml", b"<testsuites/>"),
        ("application/json", "html", "text/html; charset=utf-8", HTML),
        (None, "md", "text/markdown; charset=utf-8", b"## Repair"),
    ],
)
def test_the_report_comes_as_the_client_likes_it(gateway, repaired_job, accept, format_, media_type, content):
    headers = {"Accept": accept} if accept else {}
    query = {"format": format_} if format_ else {}
    answer = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/report", params=query, headers=headers)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, media_type, content)
    assert answer.headers["content-disposition"].startswith("inline")
    assert answer.headers["vary"] == "Accept"


def test_a_report_can_neither_run_nor_load_what_is_not_ours(gateway, repaired_job):
    answer = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/report", params={"format": "html"})
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "sandbox" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0", "text/html;q=0.0, application/json;q=0"])
def test_a_report_in_no_format_that_is_made_is_not_acceptable(gateway, repaired_job, accept):
    path = f"/v1/jobs/{repaired_job['id']}/report"
    refused = gateway.client.get(path, headers={"Accept": accept})
    assert (refused.status_code, refused.json()["code"]) == (406, "request.not_acceptable")
    assert "text/html" in refused.json()["detail"]
    assert gateway.client.get(path, params={"format": "pdf"}).status_code == 422


def test_a_report_of_before_there_were_views_is_json_alone(gateway, submit, finish):
    job = submit()
    finish(job["id"], files=[("report.json", "report", REPORT)], verdict="pass", result={"outcome": "repaired"})
    missing = gateway.client.get(f"/v1/jobs/{job['id']}/report", params={"format": "html"})
    assert (missing.status_code, missing.json()["code"]) == (404, "job.no_report")
    assert gateway.client.get(f"/v1/jobs/{job['id']}/report").content == REPORT


@pytest.mark.parametrize("path", ["model", "localization", "report"])
def test_a_result_asked_for_too_early_is_a_409_that_can_be_repeated(gateway, submit, path):
    answer = gateway.client.get(f"/v1/jobs/{submit()['id']}/{path}")
    body = answer.json()
    assert (answer.status_code, body["code"], body["retryable"]) == (409, "job.not_finished", True)
    assert int(answer.headers["retry-after"]) > 0


def test_without_an_improvement_the_reason_is_given_and_the_candidate_only_on_request(gateway, submit, finish):
    job = submit()
    result = {"outcome": "no_improvement", "reason": "the test set got worse by 1.2 points"}
    finish(job["id"], files=[("candidate.pt", "candidate", b"PK\x03\x04worse")], verdict="fail", result=result)
    path = f"/v1/jobs/{job['id']}/model"
    refused = gateway.client.get(path)
    assert (refused.status_code, refused.json()["code"]) == (404, "job.no_repaired_model")
    assert "worse by 1.2 points" in refused.json()["detail"]
    assert "candidate=true" in refused.json()["hint"]
    candidate = gateway.client.get(path, params={"candidate": "true"})
    assert candidate.content == b"PK\x03\x04worse"
    assert "resnet18.candidate.pt" in candidate.headers["content-disposition"]


def test_a_failed_job_says_why_there_is_no_model(gateway, submit, finish):
    job = submit()
    finish(job["id"], "failed", error={"code": "model.frozen_graph", "detail": "the archive is frozen"})
    for path, code in (("model", "job.no_repaired_model"), ("report", "job.no_report")):
        answer = gateway.client.get(f"/v1/jobs/{job['id']}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, code)
    assert "the archive is frozen" in gateway.client.get(f"/v1/jobs/{job['id']}/model").json()["detail"]


def test_bytes_that_are_gone_are_our_fault(gateway, repaired_job):
    delete(open_store(gateway.settings.store_url), f"jobs/{repaired_job['id']}/attempt-1/repaired.pt")
    answer = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/model")
    assert (answer.status_code, answer.json()["code"]) == (500, "platform.content_missing")


def test_an_artifact_of_another_project_or_of_none_is_a_404(gateway, repaired_job, stranger_key):
    link = gateway.client.get(f"/v1/jobs/{repaired_job['id']}/artifacts").json()["data"][0]["links"]["content"]
    answer = gateway.client.get(link, headers={"Authorization": f"Bearer {stranger_key}"})
    assert (answer.status_code, answer.json()["code"]) == (404, "artifact.not_found")
    assert gateway.client.get("/v1/artifacts/art_%00/content").status_code == 404


@pytest.fixture
def exported_job(submit, finish) -> dict:
    """A job that was asked for four formats, of which ONNX could not be written; its upload was a .pt2."""
    job = submit()
    files = [(f"repaired{suffix}", "model", suffix.encode()) for suffix in (".pt", ".safetensors", ".pt2")]
    exports = [{"format": "onnx", "file": None, "note": "not written: no kernel for float64"}]
    finish(job["id"], files=files, verdict="pass", result={"outcome": "repaired", "exports": exports})
    return job


@pytest.mark.parametrize(
    ("asked", "suffix"), [("torchscript", ".pt"), ("torch_export", ".pt2"), ("safetensors", ".safetensors")]
)
def test_a_model_comes_in_the_format_asked_for(gateway, exported_job, asked, suffix):
    answer = gateway.client.get(f"/v1/jobs/{exported_job['id']}/model", params={"format": asked})
    assert (answer.status_code, answer.content) == (200, suffix.encode())
    assert f'filename="resnet18.repaired{suffix}"' in answer.headers["content-disposition"]
    assert answer.headers["content-type"] == "application/octet-stream"


def test_without_a_format_it_is_the_first_of_the_resolved_outputs(gateway, exported_job, gateway_sessions):
    path = f"/v1/jobs/{exported_job['id']}/model"
    assert gateway.client.get(path).content == b".pt"
    with gateway_sessions.begin() as session:
        job = session.get_one(Job, exported_job["id"])
        job.resolved_spec = {"outputs": ["torch_export", "torchscript", "onnx", "safetensors"]}
    assert gateway.client.get(path).content == b".pt2"


def test_a_format_that_is_not_there_names_those_that_are_and_why(gateway, exported_job):
    answer = gateway.client.get(f"/v1/jobs/{exported_job['id']}/model", params={"format": "onnx"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (404, "job.no_such_format")
    assert "safetensors, torch_export, torchscript" in problem["detail"]
    assert "no kernel for float64" in problem["detail"]
    assert "`outputs`" in problem["hint"]
    assert gateway.client.get(f"/v1/jobs/{exported_job['id']}/model", params={"format": "h5"}).status_code == 422


def test_artifacts_say_in_which_format_a_model_is(gateway, exported_job, repaired_job):
    def formats(job):
        page = gateway.client.get(f"/v1/jobs/{job['id']}/artifacts").json()
        return {item["name"]: item["format"] for item in page["data"]}

    expected = {"repaired.pt": "torchscript", "repaired.pt2": "torch_export", "repaired.safetensors": "safetensors"}
    assert formats(exported_job) == expected
    assert formats(repaired_job)["report.json"] is None


def test_a_refused_candidate_comes_in_the_format_asked_for_too(gateway, submit, finish):
    job = submit()
    finish(job["id"], files=[("candidate.onnx", "candidate", b"onnx"), ("candidate.pt", "candidate", b"pt")])
    answer = gateway.client.get(f"/v1/jobs/{job['id']}/model", params={"format": "onnx", "candidate": "true"})
    assert answer.content == b"onnx"
    assert "resnet18.candidate.onnx" in answer.headers["content-disposition"]
