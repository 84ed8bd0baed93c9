import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pytest
from sqlalchemy import select, update

from app.keys import SCOPES, create_api_key, ensure_project
from app.shared.ids import new_id
from app.shared.tables import ApiKey, IdempotencyKey


@pytest.fixture
def tenant(gateway, gateway_sessions):
    """A client with the one key of a project of its own, and the id of that key."""
    with gateway_sessions.begin() as session:
        project_id = ensure_project(session, new_id("tenant")).id
        key = create_api_key(session, project_id=project_id, name="first")
        key_id = session.scalars(select(ApiKey.id).where(ApiKey.project_id == project_id)).one()
    with httpx.Client(base_url=gateway.url, headers=bearer(key), timeout=30) as client:
        yield client, key_id


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_a_key_is_shown_once_and_may_what_it_was_given(tenant):
    client, _ = tenant
    answer = client.post("/v1/api-keys", json={"name": "dashboard", "scopes": ["models:read", "jobs:read"]})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/api-keys/{made['id']}"
    assert made["scopes"] == ["jobs:read", "models:read"]
    assert made["key"].startswith(f"ar_{made['prefix']}_")
    shown = client.get(answer.headers["location"])
    assert "key" not in shown.json()
    assert made["key"].split("_", 2)[2] not in shown.text + client.get("/v1/api-keys").text
    assert client.get("/v1/jobs", headers=bearer(made["key"])).status_code == 200
    assert refusal(client.get("/v1/api-keys", headers=bearer(made["key"]))) == (403, "auth.missing_scope")


def test_the_secret_is_not_in_a_replayed_answer_nor_in_the_database(tenant, gateway_sessions):
    client, _ = tenant
    once = {"Idempotency-Key": new_id("test")}
    first, again = (client.post("/v1/api-keys", json={"name": "a", "scopes": ["jobs:read"]}, headers=once)
                    for _ in range(2))  # fmt: skip
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json() | {"key": None}
    with gateway_sessions() as session:
        kept = session.scalars(select(IdempotencyKey).where(IdempotencyKey.key == once["Idempotency-Key"])).one()
        assert first.json()["key"] not in str(vars(kept))


def test_a_key_grants_only_what_it_has(tenant):
    client, _ = tenant
    given = client.post("/v1/api-keys", json={"name": "keys", "scopes": ["keys:write", "jobs:read"]}).json()
    wanted = {"name": "more", "scopes": ["jobs:read", "jobs:write", "system:read"]}
    answer = client.post("/v1/api-keys", json=wanted, headers=bearer(given["key"]))
    assert refusal(answer) == (403, "key.scope_not_held")
    assert "jobs:write, system:read" in answer.json()["detail"]
    less = {"name": "less", "scopes": ["jobs:read"]}
    assert client.post("/v1/api-keys", json=less, headers=bearer(given["key"])).status_code == 201


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "x", "scopes": ["jobs:all"]}, "jobs:all"),
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "", "scopes": ["jobs:read"]}, "/name"),
        ({"name": "a\0b", "scopes": ["jobs:read"]}, "/name"),
        ({"name": "x", "scopes": ["jobs:read"], "expires_at": "2020-01-01T00:00:00Z"}, "past"),
        ({"name": "x", "scopes": ["jobs:read"], "expires_at": "2199-01-01T00:00:00"}, "/expires_at"),
        ({"name": "x", "scopes": ["jobs:read"], "role": "admin"}, "/role"),
    ],
)
def test_a_wrong_key_request_is_refused(tenant, body, said):
    answer = tenant[0].post("/v1/api-keys", json=body)
    assert refusal(answer) == (422, "request.invalid")
    assert said in answer.json()["detail"]


def test_an_expired_key_says_so(tenant, gateway_sessions, eventually):
    client, _ = tenant
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = client.post("/v1/api-keys", json={"name": "nightly", "scopes": ["jobs:read"], "expires_at": until}).json()
    assert client.get("/v1/jobs", headers=bearer(made["key"])).status_code == 200
    with gateway_sessions.begin() as session:
        session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=ApiKey.expires_at - 3601))
    ask = partial(client.get, "/v1/jobs", headers=bearer(made["key"]))
    answer = eventually(lambda: answer if (answer := ask()).is_error else None)
    assert refusal(answer) == (401, "auth.expired_key")
    assert "nightly" in answer.json()["detail"]
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_fails_at_once(tenant):
    client, _ = tenant
    made = client.post("/v1/api-keys", json={"name": "leaked", "scopes": list(SCOPES)}).json()
    assert client.get("/v1/jobs", headers=bearer(made["key"])).status_code == 200
    assert client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    assert refusal(client.get("/v1/jobs", headers=bearer(made["key"]))) == (401, "auth.invalid_key")
    assert refusal(client.delete(f"/v1/api-keys/{made['id']}")) == (404, "key.not_found")
    assert made["id"] not in client.get("/v1/api-keys").text


def test_a_key_revoked_at_another_gateway_soon_fails(tenant, gateway_sessions, eventually):
    client, _ = tenant
    made = client.post("/v1/api-keys", json={"name": "leaked", "scopes": ["jobs:read"]}).json()
    ask = partial(client.get, "/v1/jobs", headers=bearer(made["key"]))
    assert ask().status_code == 200
    with gateway_sessions.begin() as session:
        session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(revoked_at=1.0))
    eventually(lambda: ask().status_code == 401)


def test_the_last_key_that_makes_keys_stays(tenant, gateway):
    client, key_id = tenant
    client.post("/v1/api-keys", json={"name": "reader", "scopes": ["keys:read"]})
    assert refusal(client.delete(f"/v1/api-keys/{key_id}")) == (409, "key.last_one")
    other = client.post("/v1/api-keys", json={"name": "other", "scopes": ["keys:write"]}).json()
    url, answers = gateway.url, []

    def revoke(revoked: str, by: dict[str, str]) -> None:
        answers.append(httpx.delete(f"{url}/v1/api-keys/{revoked}", headers=by).status_code)

    own = {"Authorization": client.headers["authorization"]}
    pairs = [(key_id, bearer(other["key"])), (other["id"], own)]
    threads = [threading.Thread(target=revoke, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The second came before its own key was revoked, or after.
    assert sorted(answers) in ([204, 409], [204, 401])


def test_the_last_use_is_noted_and_not_with_every_request(tenant, eventually):
    client, key_id = tenant
    client.get("/v1/jobs")
    noted = eventually(lambda: client.get(f"/v1/api-keys/{key_id}").json()["last_used_at"])
    for _ in range(5):
        client.get("/v1/jobs")
    assert eventually(lambda: client.get(f"/v1/api-keys/{key_id}").json()["last_used_at"]) == noted
