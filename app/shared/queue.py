"""The doorbell. A Celery message only says "look for work"; what the work is stands in the database."""

from celery import Celery

from app.shared.settings import Settings

RING_TASK = "archrepair.ring"
RING_EXPIRES_SECONDS = 60


def make_celery(settings: Settings) -> Celery:
    """The Celery app of gateway and worker. Raises ValueError when no broker is configured."""
    if settings.broker_url is None:
        raise ValueError("no broker: start the service with `archrepair up`, or set ARCHREPAIR_BROKER_URL")
    celery = Celery("archrepair", broker=settings.broker_url, set_as_current=False)
    celery.conf.update(
        task_acks_late=False,  # redelivery is the lease's business
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=False,  # the relay retries; a POST never waits for the broker
        worker_concurrency=1,
        worker_pool_start_method="spawn",  # a fork after any torch matmul hangs
        # By default a pool process that takes 4 s to start is killed and started anew, on a busy machine for ever.
        worker_proc_alive_timeout=120.0,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # a prefetched ring would sit behind a long job
        worker_enable_remote_control=False,  # cancel goes through the database
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "socket_keepalive": True,
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            # One immediate retry: kombu's default waits 6 s in every ring while the broker is down.
            "max_retries": 1,
            "interval_start": 0,
            "health_check_interval": 25,
            "global_keyprefix": "archrepair:",
        },
    )
    return celery


def ring(celery: Celery) -> None:
    """Send one doorbell. Raises kombu's OperationalError at once when the broker is not there."""
    celery.send_task(RING_TASK, expires=RING_EXPIRES_SECONDS, ignore_result=True, retry=False)
