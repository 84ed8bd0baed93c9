"""A port of the worker's main process on which Prometheus asks, if the operator gives it one."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from prometheus_client import start_http_server
from sqlalchemy.orm import Session, sessionmaker

from app.shared.disk import local_store
from app.shared.gauges import DatabaseGauges, DiskGauges
from app.shared.metrics import MULTIPROC_DIR, begin_counting, registry_with
from app.shared.settings import Settings
from worker.scratch import scratch_root

PREFIX = "archrepair-metrics-"


def count_together(settings: Settings) -> None:
    """Have what the pool process counts told by the main process too. Begins this process again, once.

    Whether processes count together is decided when prometheus_client is imported, so it must be said before.
    """
    if settings.metrics_port is None:
        return
    if MULTIPROC_DIR not in os.environ:
        os.environ[MULTIPROC_DIR] = tempfile.mkdtemp(prefix=PREFIX)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    directory = Path(os.environ[MULTIPROC_DIR])
    if directory.name.startswith(PREFIX):
        atexit.register(shutil.rmtree, directory, ignore_errors=True)


def open_metrics_port(settings: Settings, readers: sessionmaker[Session]) -> None:
    """Answer Prometheus from a thread of its own. Raises OSError when the port is taken."""
    if settings.metrics_port is not None:
        begin_counting()
        disks = DiskGauges(local_store(settings) | {"scratch": scratch_root(settings)})
        registry = registry_with(DatabaseGauges(readers), disks)
        start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=registry)
