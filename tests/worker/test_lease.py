import time

import pytest
from sqlalchemy.exc import OperationalError

from app.shared.claims import claim_job
from worker.lease import Lease, kept_lease


@pytest.fixture
def claim(service):
    service.submit("succeed")
    with service.bench.sessions.begin() as session:
        return claim_job(session, owner="worker-1", lease_seconds=0.6)


def lease_until(service, claim):
    return service.job(claim.job_id).lease_until


def test_a_lease_is_renewed_in_the_background_and_no_longer_after_the_block(service, claim, eventually):
    first = lease_until(service, claim)
    with kept_lease(service.bench.sessions, claim, lease_seconds=0.6) as lease:
        eventually(lambda: lease_until(service, claim) > first + 0.5)
        assert lease.state == "held"
    last = lease_until(service, claim)
    time.sleep(0.4)
    assert lease_until(service, claim) == last


def test_a_short_outage_of_the_database_does_not_lose_the_lease():
    def fail():
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    lease = Lease(fail, lease_seconds=30)
    lease._renew_once()
    assert lease.state == "held"


def test_an_outage_longer_than_the_lease_loses_it(eventually):
    def fail():
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    lease = Lease(fail, lease_seconds=0.2)
    started_at = time.monotonic()
    lease.keep()
    assert lease.state == "lost"
    assert 0.2 < time.monotonic() - started_at < 1
