"""The worker's one task and the pool process it runs in. Celery imports this module in every process of the worker."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

from celery import shared_task, signals
from ulid import ULID

from app.shared.db import make_engine, make_sessions
from app.shared.logs import configure_logs
from app.shared.queue import RING_TASK
from app.shared.settings import Settings
from app.shared.storage import open_store
from app.shared.telemetry import start_tracing
from app.shared.workers import CPU
from worker.engine_process import EngineProcess
from worker.hardware import WorkerSettings, find_gpu, queues_of
from worker.job import Workbench
from worker.limits import EngineLimits
from worker.scratch import scratch_root
from worker.supervisor import run_next_job
from worker.warm_engine import WarmEngine

NAME_VARIABLE = "ARCHREPAIR_WORKER_NAME"


@shared_task(name=RING_TASK, ignore_result=True)
def look_for_work() -> None:
    """One ring drains the queue: the message says nothing about which job, and may come twice or never."""
    bench = workbench()
    with stop_on_sigterm(bench.stopping):
        while not bench.stopping.is_set() and run_next_job(bench):
            continue


@cache
def workbench() -> Workbench:
    """This process's connections and warm engine, made when it starts."""
    settings, limits, worker = Settings(), EngineLimits(), WorkerSettings()
    return Workbench(
        sessions=make_sessions(make_engine(settings.database_url, idle_seconds=settings.lease_seconds)),
        store=open_store(settings.store_url),
        engines=WarmEngine(lambda: EngineProcess(limits, scratch_root=scratch_root(settings))),
        limits=limits,
        # Unique for ever, not host and pid alone: half of the fence, and pids come again.
        owner=f"{os.environ.get(NAME_VARIABLE) or new_worker_name()}/{ULID()}",
        lease_seconds=settings.lease_seconds,
        stopping=threading.Event(),
        queues=queues_of(worker, find_gpu(os.environ) or CPU),
        running_jobs=settings.quota_running_jobs,
        settings=settings,
        tracing=start_tracing("archrepair-worker"),
    )


def new_worker_name() -> str:
    """A name no worker ever had; the main process passes it on to its pool process by NAME_VARIABLE."""
    return f"{socket.gethostname()}:{os.getpid()}:{ULID()}"


@contextmanager
def stop_on_sigterm(stopping: threading.Event) -> Iterator[None]:
    """While a job runs, SIGTERM asks it to be given back; between jobs the pool's own handler ends the process."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@signals.setup_logging.connect
def _configure_logs(**_: Any) -> None:
    """Celery asks in both processes; where somebody answers it leaves the logs alone."""
    configure_logs(Settings().log_level)


@signals.worker_process_init.connect
def _warm_up(**_: Any) -> None:
    workbench().engines.warm()


@signals.worker_process_shutdown.connect
def _cool_down(**_: Any) -> None:
    bench = workbench()
    bench.engines.close()
    if bench.tracing is not None:
        bench.tracing.shutdown()
