import json
import time

import pytest
import redis
from kombu.exceptions import OperationalError

from app.shared.queue import RING_TASK, make_celery, ring
from app.shared.settings import Settings


def test_a_ring_is_one_small_expiring_message(settings: Settings):
    assert settings.broker_url is not None
    celery = make_celery(settings)
    with redis.Redis.from_url(settings.broker_url) as broker:
        broker.flushdb()
        ring(celery)
        (raw,) = broker.lrange("archrepair:celery", 0, -1)
        broker.flushdb()
    celery.close()
    headers = json.loads(raw)["headers"]
    assert headers["task"] == RING_TASK
    assert headers["expires"] is not None
    assert headers["argsrepr"] == "()"


def test_a_ring_fails_at_once_without_a_broker(settings: Settings):
    celery = make_celery(settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"}))
    started = time.monotonic()
    with pytest.raises(OperationalError):
        ring(celery)
    assert time.monotonic() - started < 3
    celery.close()


def test_without_a_broker_url_the_error_says_what_to_do(settings: Settings):
    with pytest.raises(ValueError, match="archrepair up"):
        make_celery(settings.model_copy(update={"broker_url": None}))
