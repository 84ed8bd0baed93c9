"""Gates put to what a job has measured: by the engine's own words, on the result as the database kept it."""

import numpy as np
import pytest
import torch
from sqlalchemy import select
from torch.nn import functional as F

from app.shared.tables import Job
from archrepair_core.evaluate import summarize_split
from archrepair_core.gates import DEFAULT_GATES, evaluate_gates, verdict_of

OWN = ["test.accuracy >= before + 0.01", "test.mcnemar_p < 0.05", "test.repair_rate > 0.2", "regression.accuracy > 0.5"]
COST = {"latency_ratio": 1.0123456789012345, "params_ratio": 1.25}


def answers(labels, wrong, seed):
    """Logits that name the right class but for the given rows."""
    named = np.where(np.isin(np.arange(len(labels)), wrong), (labels + 1) % 10, labels)
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(labels), 10)))
    return 5 * F.one_hot(torch.from_numpy(named), 10).float() + 0.1 * noise.float()


def measured(gates, *, fixed=120, broken=9, n=700):
    """The result of a repair as the engine sends it: `fixed` of 200 failing inputs, `broken` others."""
    labels = np.arange(n) % 10
    before = answers(labels, range(200), 0)
    after = answers(labels, [*range(fixed, 200), *range(300, 300 + broken)], 1)
    result = {"outcome": "repaired", "repair": {"scope": ["layer1"]}, "cost": COST}
    result["test"] = summarize_split(before, after, labels)
    judged = evaluate_gates(gates, result)
    return result | {"gates": [gate.to_json() for gate in judged]}, verdict_of(judged)


@pytest.fixture
def judged_job(submit, finish):
    def make(gates=OWN, status="succeeded", **measures):
        job, (result, verdict) = submit(), measured(gates, **measures)
        finish(job["id"], status, result=result, verdict=verdict)
        return job["id"]

    return make


def ask(gateway, job_id, gates, **options):
    return gateway.client.post(f"/v1/jobs/{job_id}/verdict", json={"gates": gates}, **options)


@pytest.mark.parametrize(
    ("gates", "fixed", "broken", "verdict"),
    [
        (OWN, 120, 9, "pass"),
        (OWN, 30, 25, "fail"),
        (["test.accuracy >= before + 0.01"], 30, 20, "inconclusive"),
        (list(DEFAULT_GATES), 120, 3, "pass"),
        (["test.worst_class_p >= 0.05", "cost.params_ratio < 2"], 120, 9, "pass"),
        (["regression.accuracy > 0.5"], 120, 9, "not_evaluated"),
    ],
)
def test_the_jobs_own_gates_give_its_own_verdict_to_the_last_digit(gateway, judged_job, gates, fixed, broken, verdict):
    job_id = judged_job(gates, fixed=fixed, broken=broken)
    job = gateway.client.get(f"/v1/jobs/{job_id}").json()
    answer = ask(gateway, job_id, [gate["expression"] for gate in job["result"]["gates"]])
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "object": "verdict",
        "job_id": job_id,
        "verdict": verdict,
        "gates": job["result"]["gates"],
        "links": {"job": f"/v1/jobs/{job_id}"},
    }
    assert job["verdict"] == verdict


def test_other_gates_are_judged_and_the_job_stays_as_it_was(gateway, judged_job, gateway_sessions):
    job_id = judged_job()
    path = f"/v1/jobs/{job_id}"
    before = gateway.client.get(path)
    answer = ask(gateway, job_id, ["test.broken_rate <= 0.001", "cost.latency_ratio < 1.02"]).json()
    assert answer["verdict"] == "fail"
    assert [gate["state"] for gate in answer["gates"]] == ["fail", "pass"]
    assert answer["gates"][0]["observed"] == pytest.approx(9 / 700)
    assert answer["gates"][1]["observed"] == COST["latency_ratio"]
    after = gateway.client.get(path)
    assert (after.json(), after.headers["etag"]) == (before.json(), before.headers["etag"])
    with gateway_sessions() as session:
        assert session.scalars(select(Job.verdict).where(Job.id == job_id)).one() == "pass"


def test_where_the_original_was_kept_no_gate_can_pass_it(gateway, submit, finish):
    job, (result, _) = submit(), measured(OWN)
    result |= {"outcome": "no_improvement", "repair": None}
    finish(job["id"], result=result, verdict="fail")
    answer = ask(gateway, job["id"], ["cost.params_ratio <= 2"]).json()
    assert (answer["verdict"], answer["gates"][0]["state"]) == ("fail", "pass")


def test_a_gate_on_what_was_not_measured_is_refused_by_its_place(gateway, judged_job):
    job_id = judged_job()
    answer = ask(gateway, job_id, ["test.accuracy > before", "regression.broken_rate < 0.1", "test.latency_ratio < 2"])
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "job.gate_not_measured")
    assert [error["pointer"] for error in body["errors"]] == ["#/gates/1", "#/gates/2"]
    assert "regression.broken_rate" in body["errors"][0]["detail"]
    assert "cost.latency_ratio, cost.params_ratio, test.accuracy" in body["hint"]


@pytest.mark.parametrize(
    ("gates", "pointer"),
    [(["test.accuracy > before", "test.luck > 1"], "#/gates/1"), (["x" * 300], "#/gates/0"), ("auto", "#/gates"),
     (["test.accuracy > 0"] * 65, "#/gates")],
)  # fmt: skip
def test_a_gate_that_is_none_is_refused_by_its_place(gateway, judged_job, gates, pointer):
    answer = ask(gateway, judged_job(), gates)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_job_without_measurements_cannot_be_judged(gateway, submit, finish):
    waiting = submit()["id"]
    answer = ask(gateway, waiting, ["test.accuracy > 0"])
    assert (answer.status_code, answer.json()["code"], "retry-after" in answer.headers) == (
        409, "job.not_finished", True)  # fmt: skip
    gateway.client.post(f"/v1/jobs/{waiting}/cancel")
    failed = submit()["id"]
    finish(failed, "failed", error={"code": "model.frozen_graph", "detail": "frozen", "category": "user"})
    localized = submit({"kind": "localize", "datasets": {"repair": "upload:repair"}})["id"]
    finish(localized, result={"outcome": "localized"})
    for job_id, word in ((waiting, "cancelled"), (failed, "failed"), (localized, "localize")):
        body = ask(gateway, job_id, ["test.accuracy > 0"]).json()
        assert (body["status"], body["code"]) == (409, "job.nothing_to_judge")
        assert word in body["detail"]


def test_a_verdict_is_answered_once_per_idempotency_key(gateway, judged_job):
    job_id, headers = judged_job(), {"Idempotency-Key": "ci-1"}
    first, again = (ask(gateway, job_id, OWN[:2], headers=headers) for _ in range(2))
    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    other = ask(gateway, job_id, OWN[:1], headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "request.idempotency_mismatch")
