import contextlib
import json
import secrets
import socket
import time

import pytest
import redis

from app.keys import create_api_key, ensure_project
from app.ratelimits import client_network, kind_of
from tests.servers import LOOPBACK, accepts, free_port, running, valkey_command, wait_until


@pytest.fixture
def limited(stack, tmp_path, in_process_gateway):
    """Starts a gateway with limits of its own and counters at zero."""

    @contextlib.contextmanager
    def start(broker_url: str | None = None, **limits: int):
        with redis.Redis.from_url(stack.broker_url) as broker:
            for key in broker.scan_iter("archrepair:limits*"):
                broker.delete(key)
        settings = stack.fresh(tmp_path / "limited", broker_url=broker_url, **limits)
        with in_process_gateway(settings) as client:
            yield client

    return start


def settle_into_a_minute() -> None:
    """Not across the turn of a minute, where counting begins anew."""
    if time.time() % 60 > 55:
        time.sleep(60.1 - time.time() % 60)


def test_a_key_that_asks_too_often_is_told_when_to_come_back(limited, submission):
    settle_into_a_minute()
    with limited(rate_limit_reads=3, rate_limit_writes=2, rate_limit_uploads=1) as client:
        answers = [client.get("/v1/jobs") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["ratelimit-policy"] == '"reads";q=3;w=60'
        assert answers[0].headers["ratelimit"].startswith('"reads";r=2;t=')
        refused = answers[-1]
        assert refused.json()["code"] == "quota.rate_limited"
        assert refused.json()["retryable"] is True
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert refused.headers["ratelimit"] == f'"reads";r=0;t={refused.headers["retry-after"]}'
        # Each kind has a count of its own, and liveness none.
        assert client.post("/v1/jobs", files=submission()).status_code == 202
        assert client.post("/v1/jobs", files=submission()).headers["ratelimit-policy"] == '"uploads";q=1;w=60'
        assert client.post("/v1/jobs", json={}).status_code == 422
        assert "ratelimit" not in client.get("/healthz").headers


def test_a_large_limit_is_taken_from_redis_in_hundredths(limited, stack):
    settle_into_a_minute()
    with limited(rate_limit_reads=200) as client, redis.Redis.from_url(stack.broker_url) as broker:
        answers = [client.get("/v1/jobs") for _ in range(4)]
        assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=199", "r=198", "r=197", "r=196"]
        (key,) = broker.scan_iter("archrepair:limits*")
        assert int(broker.get(key)) == 4
        assert client.get("/v1/jobs").status_code == 200
        assert int(broker.get(key)) == 6
        # As if another gateway had taken all the rest but one: what is in hand is still given out, and no more.
        broker.set(key, 199)
        assert [client.get("/v1/jobs").status_code for _ in range(3)] == [200, 200, 429]


def test_keys_do_not_count_for_each_other(limited):
    settle_into_a_minute()
    with limited(rate_limit_reads=1) as client:
        with client.app.state.gateway.sessions.begin() as session:
            other = create_api_key(session, project_id=ensure_project(session).id, name="other")
        assert [client.get("/v1/jobs").status_code for _ in range(2)] == [200, 429]
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def test_wrong_keys_are_slowed_down_and_never_lock_a_good_one_out(limited):
    settle_into_a_minute()
    with limited(rate_limit_failed_authentications=3) as client:
        wrong = [client.get("/v1/jobs", headers={"Authorization": f"Bearer ar_0000000{n}_x"}) for n in range(5)]
        assert [answer.status_code for answer in wrong] == [401, 401, 401, 429, 429]
        assert client.get("/v1/jobs").status_code == 200


def test_without_limits_nothing_is_counted(limited):
    with limited(rate_limit_reads=0) as client:
        assert "ratelimit" not in client.get("/v1/jobs").headers


def test_without_redis_nobody_is_refused_and_the_log_says_so_once(limited, eventually, capfd):
    port, password = free_port(), secrets.token_hex(8)
    url = f"redis://:{password}@{LOOPBACK}:{port}/0"
    with limited(broker_url=url, rate_limit_reads=2) as client:
        limiter = client.app.state.gateway.rate_limiter
        assert [client.get("/v1/jobs").status_code for _ in range(4)] == [200] * 4
        assert (limiter.outages, limiter.uncounted) == (1, 4)
        with running(valkey_command(port, password)):
            wait_until(lambda: accepts(port), seconds=10, what="the broker's start")
            eventually(lambda: "ratelimit" in client.get("/v1/jobs").headers, seconds=5)
            settle_into_a_minute()
            assert 429 in {client.get("/v1/jobs").status_code for _ in range(3)}
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    events = [line["event"] for line in lines if line["event"].startswith("rate limits")]
    assert events == ["rate limits are off: Redis does not answer", "rate limits are on again"]


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_a_redis_that_hangs_costs_one_request_a_moment(limited):
    with contextlib.ExitStack() as opened:
        silent = opened.enter_context(socket.create_server((LOOPBACK, 0)))
        url = f"redis://{LOOPBACK}:{silent.getsockname()[1]}/0"
        client = opened.enter_context(limited(broker_url=url, rate_limit_reads=2))
        seconds = []
        for _ in range(6):
            started = time.monotonic()
            assert client.get("/v1/jobs").status_code == 200
            seconds.append(time.monotonic() - started)
    assert seconds[0] < 2
    assert sorted(seconds[1:])[2] < 0.2


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_of_ipv6_counts_with_its_network(host, network):
    assert client_network(host) == network


@pytest.mark.parametrize(
    ("method", "content_type", "kind"),
    [
        ("GET", "", "reads"),
        ("HEAD", "", "reads"),
        ("POST", "application/json", "writes"),
        ("DELETE", "", "writes"),
        ("POST", "multipart/form-data; boundary=x", "uploads"),
        ("PUT", "application/octet-stream", "uploads"),
    ],
)
def test_what_a_request_counts_as(method, content_type, kind):
    assert kind_of(method, content_type) == kind
