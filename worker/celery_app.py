"""`python -m worker.celery_app`: a worker. Its main process listens for rings and sweeps, a pool process runs jobs."""

import contextlib
import os
import signal
import threading
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
from celery import Celery, signals
from sqlalchemy.exc import SQLAlchemyError

from app.shared.db import make_engine, make_sessions, read_only
from app.shared.egress import EgressPolicy
from app.shared.logs import configure_logs
from app.shared.queue import make_celery, ring
from app.shared.secret import service_secret
from app.shared.settings import Settings
from app.shared.storage import open_store
from app.shared.workers import CPU, GPU, Worker, forget_worker
from archrepair_core.sandbox.sandbox import describe_layers, missing_layers, refuse_gaps
from worker.deafness import DeafnessWatch
from worker.hardware import WorkerSettings, choose_device, queues_of
from worker.limits import EngineLimits
from worker.metrics_port import count_together, open_metrics_port
from worker.reaper import sweep_until
from worker.scratch import scratch_root, sweep_scratch
from worker.tasks import NAME_VARIABLE, new_worker_name
from worker.webhooks import Postbox, deliver_until

LEAVING_SECONDS = 2.0
DEAF_EXIT_CODE = 70
# One process per worker, hence per GPU; no chatter between workers, the database knows everything.
ARGUMENTS = (
    "--quiet",
    "worker",
    "-c",
    "1",
    "--pool=prefork",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)


def main() -> None:
    """Run a worker until SIGTERM, then give a running job back and end."""
    settings = Settings()
    count_together(settings)
    configure_logs(settings.log_level)
    check_sandbox(EngineLimits())
    worker = describe_worker(WorkerSettings())
    celery = make_celery(settings)
    celery.conf.update(imports=("worker.tasks",), worker_redirect_stdouts=False)
    sweep_scratch(scratch_root(settings))
    connect_main_process(celery, settings, worker)
    celery.worker_main([*ARGUMENTS, f"--loglevel={settings.log_level}"])


def describe_worker(settings: WorkerSettings) -> Worker:
    """What this worker is; its pool process finds name and device in the environment it inherits."""
    device, name = choose_device(settings), new_worker_name()
    queues = queues_of(settings, device)
    if device == CPU and GPU in queues:
        structlog.get_logger().warning("serves the queue of GPUs without one", queues=queues)
    os.environ[NAME_VARIABLE] = name
    return Worker(name, queues, device, version("archrepair"))


def check_sandbox(limits: EngineLimits) -> None:
    """Say once what this machine cannot close, or do not start when the operator wants it closed."""
    gaps = missing_layers() if limits.sandbox != "off" else ()
    if limits.sandbox == "required":
        refuse_gaps(gaps)
    if gaps:
        structlog.get_logger().warning("engines run with gaps in their sandbox", gaps=describe_layers(gaps))


def connect_main_process(celery: Celery, settings: Settings, worker: Worker) -> None:
    """Sweep while the worker is up, and pass a shutdown on to the pool process.

    Celery's warm shutdown waits for the task, which may take hours; SIGTERM to the pool process makes the task end.
    """
    stopped = threading.Event()
    pools: list[Any] = []
    secret = service_secret(settings)
    engine = make_engine(settings.database_url, idle_seconds=settings.lease_seconds)
    sessions, store = make_sessions(engine), open_store(settings.store_url)
    sweeps = threading.Thread(
        target=sweep_until,
        args=(stopped, sessions, partial(ring, celery)),
        kwargs={
            "store": store,
            "worker": worker,
            "retention_days": settings.retention_days,
            "watch": DeafnessWatch(worker, store, settings.quota_running_jobs),
            "give_up": partial(os._exit, DEAF_EXIT_CODE),
        },
        name="sweeps",
        daemon=True,
    )

    def start(sender: Any, **_: Any) -> None:
        pools.append(sender.pool)
        open_metrics_port(settings, make_sessions(read_only(engine)))
        sweeps.start()
        postbox = Postbox(sessions, secret, EgressPolicy(settings.egress_allow), settings.webhook_retry_seconds)
        threading.Thread(target=deliver_until, args=(stopped, postbox), name="webhooks", daemon=True).start()

    def stop(**_: Any) -> None:
        if stopped.is_set():  # a second signal; the pool may be gone already
            return
        stopped.set()
        for pool in pools:
            for pid in pool.info["processes"]:
                os.kill(pid, signal.SIGTERM)

    def leave(**_: Any) -> None:
        sweeps.join(LEAVING_SECONDS)
        # Without a database the others will see that it is silent.
        with contextlib.suppress(SQLAlchemyError), sessions.begin() as session:
            forget_worker(session, worker.name)

    signals.worker_shutdown.connect(leave, weak=False)
    signals.worker_ready.connect(start, weak=False)
    signals.worker_shutting_down.connect(stop, weak=False)


if __name__ == "__main__":
    main()
