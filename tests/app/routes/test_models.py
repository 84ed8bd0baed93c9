import hashlib


def test_an_uploaded_model_can_be_looked_up(gateway, submit):
    job = submit(model=b"PK\x03\x04 a model", repair=b"r")
    model = gateway.client.get(f"/v1/models/{job['model_id']}").json()
    assert (model["object"], model["filename"], model["size_bytes"]) == ("model", "resnet18.pt", 12)
    assert model["sha256"] == hashlib.sha256(b"PK\x03\x04 a model").hexdigest()
    assert gateway.client.get("/models", params={"limit": 1}).json()["data"] == [model]


def test_models_are_listed_page_by_page(gateway, submit):
    ids = [submit()["model_id"] for _ in range(3)]
    first = gateway.client.get("/v1/models", params={"limit": 2}).json()
    rest = gateway.client.get("/v1/models", params={"limit": 100, "cursor": first["next_cursor"]}).json()
    assert [model["id"] for model in first["data"] + rest["data"]][:3] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_an_unknown_model_is_a_404(gateway):
    answer = gateway.client.get("/v1/models/mdl_nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "model.not_found")
