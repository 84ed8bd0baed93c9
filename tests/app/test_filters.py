import re
import uuid
from typing import get_args

import pytest
from sqlalchemy import update

from app import filters
from app.shared.datasets import INGEST
from app.shared.jobs import DONE, INSPECT, LIVE
from app.shared.tables import Job
from archrepair_core.spec import RepairSpec

SPEC = {"datasets": {"repair": "upload:repair"}}


@pytest.fixture
def client(tenant):
    return tenant[0]


@pytest.fixture
def add(client, submission):
    """Submits a job of the tenant and gives its id."""

    def submit(metadata=None, **spec):
        answer = client.post("/v1/jobs", files=submission({**SPEC, **spec, "metadata": metadata or {}}))
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    return submit


@pytest.fixture
def listed(client):
    def ids(query=None, **asked):
        answer = client.get("/v1/jobs", params=query or asked)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    return ids


def test_jobs_are_found_by_pairs_of_their_metadata(add, listed):
    pairs = {"git_sha": "8c1f2e0", 'a key (with) "all" {of} $.it%': "ü\x00\U0001f600 '", "empty": ""}
    both, other = add(pairs), add({"git_sha": "8c1f2e0", "run": "7"})
    add({"git_sha": "8c1f2e", "run": "8c1f2e0"})
    assert listed({"metadata[git_sha]": "8c1f2e0"}) == [other, both]
    assert listed({"metadata[git_sha]": "8c1f2e0", "metadata[run]": "7"}) == [other]
    for key, value in pairs.items():
        assert both in listed({f"metadata[{key}]": value}), key
    assert listed({"metadata[empty]": ""}) == [both]
    assert listed({"metadata[git_sha]": "7", "metadata[run]": "7"}) == []


def test_a_retry_is_found_by_the_metadata_of_the_first_and_a_deleted_job_no_more(client, add, listed):
    first, query = add({"git_sha": "1"}), {"metadata[git_sha]": "1"}
    client.post(f"/v1/jobs/{first}/cancel")
    again = client.post(f"/v1/jobs/{first}/retry").json()["id"]
    assert listed(query) == [again, first]
    assert client.delete(f"/v1/jobs/{first}").status_code == 204
    assert listed(query) == [again]


def test_another_projects_jobs_are_not_found_by_the_same_metadata(gateway, submit, listed):
    value = str(uuid.uuid4())
    job = submit({**SPEC, "metadata": {"run": value}})
    assert [row["id"] for row in gateway.client.get("/v1/jobs", params={"metadata[run]": value}).json()["data"]] == [
        job["id"]
    ]
    assert listed({"metadata[run]": value}) == []


def test_all_filters_go_together_page_by_page(client, gateway_sessions, add, listed):
    wanted = [add({"run": "1"}, kind="localize") for _ in range(3)]
    add({"run": "1"})
    add({"run": "2"}, kind="localize")
    failed = add({"run": "1"}, kind="localize")
    with gateway_sessions.begin() as session:
        session.execute(update(Job).where(Job.id == failed).values(status="failed"))
    query = {"status": "queued", "kind": "localize", "verdict": "not_evaluated", "metadata[run]": "1", "limit": 2}
    query |= {"created_after": "2020-01-01T00:00:00Z", "created_before": "2999-01-01T00:00:00Z"}
    first = client.get("/v1/jobs", params=query).json()
    rest = client.get("/v1/jobs", params={**query, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["data"] + rest["data"]] == wanted[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_jobs_are_found_by_when_they_were_made_and_by_each_state(client, gateway_sessions, add, listed):
    old, new = add(), add()
    with gateway_sessions.begin() as session:
        session.execute(update(Job).where(Job.id == old).values(created_at=1e9, status="failed", verdict="pass"))
    assert listed(created_before="2010-01-01T00:00:00Z") == [old]
    assert listed(created_after="2010-01-01T00:00:00+01:00") == [new]
    assert listed(created_after="2001-09-09T01:46:40Z") == [new], "after, not at"
    assert listed(status="failed") == listed(verdict="pass") == [old]
    assert listed(model_id=client.get(f"/v1/jobs/{new}").json()["model_id"]) == [new]


@pytest.mark.parametrize(
    ("query", "parameter", "said"),
    [
        ("status=done", "status", "'succeeded'"),
        ("verdict=good", "verdict", "'inconclusive'"),
        ("kind=train", "kind", "'localize'"),
        ("model_id=7", "model_id", "mdl_"),
        ("created_before=yesterday", "created_before", "2026-11-22T10:02:11Z"),
        ("metadata=x", "metadata", "metadata[KEY]=VALUE"),
        ("metadata[k=x", "metadata[k", "metadata[KEY]=VALUE"),
        ("metadata[]=x", "metadata[]", "at least 1 character"),
        ("metadata[][k]=x", "metadata[][k]", "no square bracket"),
        ("metadata[k]=1&metadata[k]=2", "metadata[k]", "two values"),
        (f"metadata[{'k' * 65}]=x", f"metadata[{'k' * 65}]", "at most 64 characters"),
        (f"metadata[k]={'v' * 513}", "metadata[k]", "at most 512 characters"),
        ("&".join(f"metadata[{number}]=x" for number in range(17)), "metadata", "at most 16"),
    ],
)
def test_a_filter_that_means_nothing_is_refused_with_what_is_allowed(client, query, parameter, said):
    answer = client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")
    assert answer.json()["errors"][0]["parameter"] == f"query {parameter}"
    assert said in answer.json()["detail"]


def test_a_parameter_that_does_not_exist_changes_nothing_as_everywhere(add, listed):
    job = add({"run": "1"})
    assert listed({"colour": "red", "metadatum[run]": "2"}) == [job]


def test_a_key_is_asked_for_before_a_filter_is_looked_at(client):
    answer = client.get("/v1/jobs?metadata=x&status=done", headers={"Authorization": "Bearer no"})
    assert answer.status_code == 401


def test_the_values_that_can_be_asked_for_are_those_that_jobs_have():
    assert set(get_args(filters.Status)) == {*LIVE, *DONE}
    assert set(get_args(filters.Kind)) == {*get_args(RepairSpec.model_fields["kind"].annotation), INSPECT, INGEST}


def test_the_document_shows_how_metadata_is_asked_for(gateway):
    parameters = gateway.client.get("/openapi.json").json()["paths"]["/v1/jobs"]["get"]["parameters"]
    metadata = next(parameter for parameter in parameters if parameter["name"] == "metadata")
    assert (metadata["style"], metadata["explode"]) == ("deepObject", True)
    status = next(parameter for parameter in parameters if parameter["name"] == "status")
    assert set(status["schema"]["enum"]) == {*LIVE, *DONE}
    assert not re.search(r"null", str(status["schema"]))
