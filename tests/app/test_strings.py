"""A string with a NUL, which Postgres takes nowhere: refused, or kept as something else, and never a 500."""

import pytest

NUL = "a\x00b"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("models", {"upload_id": NUL}),
        ("datasets", {"reference": NUL}),
        ("datasets", {"reference": "builtin:digits", "name": NUL}),
        ("datasets", {"reference": "builtin:digits", "metadata": {"k": NUL}}),
        ("uploads", {"filename": NUL, "size_bytes": 1}),
        ("webhook-endpoints", {"url": "https://127.0.0.1/hook", "description": NUL}),
        ("webhook-endpoints", {"url": f"https://127.0.0.1/{NUL}"}),
        ("api-keys", {"name": NUL}),
        ("jobs", {"model_id": NUL, "datasets": {"repair": "builtin:digits"}}),
        ("jobs", {"model_id": "mdl_" + "0" * 26, "datasets": {"repair": NUL}}),
        ("jobs?validate_only=true", {"datasets": {"repair": "builtin:digits"}, "metadata": {"k": NUL}}),
    ],
)
def test_a_nul_in_a_string_breaks_nothing(gateway, path, body):
    answer = gateway.client.post(f"/v1/{path}", json=body)
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    "path", ["jobs?model_id=%00", "jobs?metadata[k]=%00", "jobs/%00", "models?cursor=%00", "datasets/%00/content"]
)
def test_a_nul_in_an_address_breaks_nothing(gateway, path):
    assert gateway.client.get(f"/v1/{path}").status_code < 500
