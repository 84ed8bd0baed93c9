"""A real database, a real store, and an engine process that only pretends to repair."""

import sys
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
import pytest
from sqlalchemy import select

from app.shared.db import make_engine, make_sessions
from app.shared.ids import new_id
from app.shared.jobs import request_cancel, submit_job
from app.shared.storage import open_store
from app.shared.tables import Artifact, Attempt, Job, JobEvent, JobInput, Model, Project
from worker.engine_process import EngineProcess
from worker.job import Workbench
from worker.limits import EngineLimits
from worker.warm_engine import WarmEngine

DOUBLE = (sys.executable, "-S", "-E", str(Path(__file__).with_name("engine_double.py")))


@pytest.fixture
def limits():
    return EngineLimits(grace_seconds=0.3)


@pytest.fixture
def scratch_root(tmp_path):
    return tmp_path / "scratch"


@pytest.fixture
def start_double(limits, scratch_root):
    """Starts engine doubles and leaves none behind."""
    started = []

    def start(limits=limits, command=DOUBLE):
        started.append(EngineProcess(limits, scratch_root=scratch_root, command=command))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


@dataclass
class Service:
    """The database and store of one test, with the workbench of a worker on them."""

    bench: Workbench
    model_id: str
    project_id: str

    def submit(self, behave, *, spec=None, **options):
        with self.bench.sessions.begin() as session:
            upload = JobInput(
                name="upload:repair", filename="data.npz", sha256="0", size_bytes=4, storage_key="blobs/sha256/data"
            )
            return submit_job(
                session,
                project_id=self.project_id,
                spec={"behave": behave, **(spec or {})},
                kind="repair",
                model_id=self.model_id,
                inputs=[upload],
                **options,
            ).id

    def cancel(self, job_id, *, keep_best=False):
        with self.bench.sessions.begin() as session:
            request_cancel(session, session.get_one(Job, job_id), keep_best=keep_best)

    def job(self, job_id):
        with self.bench.sessions() as session:
            return session.get_one(Job, job_id)

    def causes(self, job_id):
        with self.bench.sessions() as session:
            return list(session.scalars(select(Attempt.cause).where(Attempt.job_id == job_id).order_by(Attempt.id)))

    def events(self, job_id, kind):
        with self.bench.sessions() as session:
            found = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == kind).order_by(JobEvent.seq)
            return list(session.scalars(found))

    def artifacts(self, job_id):
        """Name to (row, content)."""
        with self.bench.sessions() as session:
            rows = session.scalars(select(Artifact).where(Artifact.job_id == job_id)).all()
        return {row.name: (row, bytes(obstore.get(self.bench.store, row.storage_key).bytes())) for row in rows}

    def with_limits(self, **changes):
        return replace(self, bench=replace(self.bench, limits=self.bench.limits.model_copy(update=changes)))


@pytest.fixture
def service(settings, limits, start_double):
    engine = make_engine(settings.database_url)
    bench = Workbench(
        sessions=make_sessions(engine),
        store=open_store(settings.store_url),
        engines=WarmEngine(start_double),
        limits=limits,
        owner="worker-1",
        lease_seconds=5,
        stopping=threading.Event(),
        settings=settings,
    )
    obstore.put(bench.store, "blobs/sha256/model", b"MODEL")
    obstore.put(bench.store, "blobs/sha256/data", b"DATA")
    project, model = new_id("prj"), new_id("mdl")
    with bench.sessions.begin() as session:
        session.add(Project(id=project, name="tests"))
        session.flush()
        session.add(
            Model(
                id=model,
                project_id=project,
                filename="m.pt",
                sha256="0",
                size_bytes=5,
                storage_key="blobs/sha256/model",
            )
        )
    yield Service(bench, model, project)
    engine.dispose()


@dataclass
class Receiver:
    """A customer's endpoint: keeps what it got, answers as it is told."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"thanks"
    pause_seconds: float = 0.0
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def handler(self):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                time.sleep(receiver.pause_seconds)
                self.send_response(receiver.status)
                for name, value in {**receiver.headers, "Content-Length": str(len(receiver.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(receiver.body)

            def log_message(self, *_):
                return

        return Handler


@pytest.fixture
def receiver():
    receiver = Receiver()
    server = ThreadingHTTPServer(("127.0.0.1", 0), receiver.handler())
    receiver.url = f"http://127.0.0.1:{server.server_port}/hooks"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield receiver
    server.shutdown()
    server.server_close()
    thread.join()
