import pytest

from app.shared.webhooks import EVENTS

URL = "https://hooks.example.com/archrepair"


@pytest.fixture
def make(gateway):
    made = []

    def make_endpoint(**fields):
        answer = gateway.client.post("/v1/webhook-endpoints", json={"url": URL, **fields})
        assert answer.status_code == 201, answer.text
        made.append(answer.json())
        return made[-1]

    yield make_endpoint
    for endpoint in made:
        gateway.client.delete(endpoint["links"]["self"])


def test_an_endpoint_shows_its_secret_once(gateway, make):
    made = make(description="ours")
    assert made["secret"].startswith("whsec_")
    assert made["events"] == list(EVENTS)
    shown = gateway.client.get(made["links"]["self"]).json()
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert shown in gateway.client.get("/v1/webhook-endpoints").json()["data"]


def test_a_secret_is_rotated(gateway, make):
    made = make()
    rotated = gateway.client.post(f"{made['links']['self']}/rotate-secret")
    assert rotated.status_code == 200
    assert rotated.json()["secret"] not in ("", made["secret"])
    assert rotated.json()["rotated_at"]


def test_the_secret_of_single_jobs_is_rotated_once_and_is_no_endpoint(gateway):
    def shown():
        return gateway.client.post("/v1/webhook-endpoints/job-secret").json()["secret"]

    before, listed = shown(), gateway.client.get("/v1/webhook-endpoints").json()
    path, once = "/v1/webhook-endpoints/job-secret/rotate", {"Idempotency-Key": "rotate the secret of jobs"}
    rotated = gateway.client.post(path, headers=once).json()
    assert (rotated["object"], rotated["secret"]) == ("webhook_signing_secret", shown())
    assert rotated["secret"] != before
    assert gateway.client.post(path, headers=once).json() == rotated | {"secret": None}
    assert shown() == rotated["secret"], "sent again, it is the same rotation"
    assert gateway.client.get("/v1/webhook-endpoints").json() == listed


def test_an_endpoint_is_changed_and_deleted(gateway, make):
    path = make()["links"]["self"]
    changed = gateway.client.patch(path, json={"enabled": False, "events": ["job.failed"]}).json()
    assert (changed["enabled"], changed["events"], changed["url"]) == (False, ["job.failed"], URL)
    assert gateway.client.delete(path).status_code == 204
    for answer in (gateway.client.delete(path), gateway.client.get(path), gateway.client.post(f"{path}/test")):
        assert (answer.status_code, answer.json()["code"]) == (404, "endpoint.not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "http://127.0.0.1/"}, "webhook.url_refused"),
        ({"url": "https://user:secret@example.com/"}, "webhook.url_refused"),
        ({"url": "ftp://example.com/"}, "request.invalid"),
        ({"url": URL, "events": ["job.exploded"]}, "request.invalid"),
        ({"url": URL, "events": []}, "request.invalid"),
        ({"url": URL, "secrets": 1}, "request.invalid"),
    ],
)
def test_a_wrong_endpoint_is_refused_with_its_place(gateway, body, code):
    answer = gateway.client.post("/v1/webhook-endpoints", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["errors"][0]["pointer"].startswith("#/")
    assert "secret@" not in answer.text


def test_a_test_message_stands_in_the_log_and_can_be_sent_again(gateway, make):
    made = make()
    sent = gateway.client.post(f"{made['links']['self']}/test")
    assert sent.status_code == 202
    log = gateway.client.get(made["links"]["deliveries"]).json()["data"]
    assert [row["id"] for row in log] == [sent.json()["id"]]
    assert (log[0]["event"], log[0]["state"]) == ("webhook.test", "pending")
    again = gateway.client.post(f"{made['links']['deliveries']}/{log[0]['id']}/redeliver")
    assert (again.status_code, again.json()["attempts"][0]["asked_again"]) == (202, True)
    unknown = gateway.client.post(f"{made['links']['deliveries']}/whd_{'0' * 26}/redeliver")
    assert unknown.json()["code"] == "delivery.not_found"


def test_jobs_fill_the_log_and_a_job_may_bring_its_own(gateway, make, submit):
    made = make(events=["job.created"])
    spec = {"datasets": {"repair": "upload:repair"}, "webhook": {"url": URL, "events": ["job.failed"]}}
    job = submit(spec)
    log = gateway.client.get(made["links"]["deliveries"]).json()["data"]
    assert [(row["event"], row["job_id"]) for row in log] == [("job.created", job["id"])]
    assert "webhook" not in job["spec"]
    secret = gateway.client.post("/v1/webhook-endpoints/job-secret").json()["secret"]
    assert secret == gateway.client.post("/v1/webhook-endpoints/job-secret").json()["secret"]
    assert secret != made["secret"]


def test_what_was_sent_to_the_webhook_of_a_job_is_shown_with_the_job_and_can_be_sent_again(gateway, submit, finish):
    job = submit({"datasets": {"repair": "upload:repair"}, "webhook": {"url": URL}})
    assert gateway.client.get(job["links"]["deliveries"]).json()["data"] == []
    finish(job["id"])
    (row,) = gateway.client.get(job["links"]["deliveries"]).json()["data"]
    assert (row["event"], row["url"], row["endpoint_id"], row["state"]) == ("job.succeeded", URL, None, "pending")
    again = gateway.client.post(f"{job['links']['deliveries']}/{row['id']}/redeliver")
    assert (again.status_code, again.json()["id"]) == (202, row["id"])


def test_the_webhook_of_a_job_is_checked_when_it_is_submitted(gateway, submission):
    spec = {"datasets": {"repair": "upload:repair"}, "webhook": {"url": "http://169.254.169.254/"}}
    answer = gateway.client.post("/v1/jobs", files=submission(spec))
    assert (answer.status_code, answer.json()["code"]) == (422, "webhook.url_refused")
    assert answer.json()["errors"][0]["pointer"] == "#/webhook/url"
