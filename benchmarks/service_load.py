"""The service under load, beside bare routes that do the same work: `python -m benchmarks.service_load [production]`.

Gateway, servers and clients share this machine, and the clients are processes of their own: on two cores they take
about half of it, from the service and from the bare routes alike. Read the ratios, not the rates.
"""

import argparse
import asyncio
import hashlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from fastapi import FastAPI, Request
from sqlalchemy import text
from starlette.responses import JSONResponse

from app.shared.db import make_engine
from app.shared.settings import Settings
from archrepair_core.demo.digits import make_case
from tests.conftest import launch_gateway
from tests.servers import (
    LOOPBACK,
    accepts,
    die_with_parent,
    environment_of,
    free_port,
    running_broker,
    running_stack,
    wait_until,
)

MIB = 1 << 20
POLLERS, UPLOADERS, UPLOAD_BYTES = 200, 20, 50 * MIB
SPEC = json.dumps({"datasets": {"repair": "builtin:digits"}}).encode()
MODEL = b"PK\x03\x04" + bytes(60)
# As long as those of curl and browsers: the shorter it is, the longer takes the search for it.
BOUNDARY = "-" * 24 + "d74496d66958873e5f01ab"
NUM_STARTS = 20
# More than an interpreter takes, and less than one that has imported torch.
WARM_BYTES = 150 * MIB
LONG_SPEC = json.dumps(
    {
        "datasets": {"repair": "upload:repair"},
        "repair": {"method": "weights", "epochs": 1000, "budget_seconds": 600},
    }
)


def bare_app() -> FastAPI:
    """What the framework costs by itself: the whole row of a job as JSON, and a body into a file while hashing it."""
    app, engine = FastAPI(), make_engine(os.environ["ARCHREPAIR_DATABASE_URL"])

    @app.get("/jobs/{job_id}")
    def get_job(job_id: str) -> JSONResponse:
        query = text("SELECT * FROM jobs WHERE id = :id")
        with engine.connect() as connection:
            return JSONResponse(
                {name: str(value) for name, value in connection.execute(query, {"id": job_id}).mappings().one().items()}
            )

    @app.post("/upload")
    async def upload(request: Request) -> JSONResponse:
        digest = hashlib.sha256()
        with tempfile.TemporaryFile(dir=os.environ["BARE_DIRECTORY"]) as file:
            async for chunk in request.stream():
                digest.update(chunk)
                file.write(chunk)
        return JSONResponse({"sha256": digest.hexdigest()})

    return app


@contextmanager
def running_bare(database_url: str, directory: Path) -> Any:
    """The bare routes in a process of their own."""
    port = free_port()
    environment = {**os.environ, "ARCHREPAIR_DATABASE_URL": database_url, "BARE_DIRECTORY": str(directory)}
    options = ["--factory", "--port", str(port), "--no-access-log"]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.service_load:bare_app", *options]
    process = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent, stderr=subprocess.DEVNULL)
    wait_until(lambda: accepts(port), seconds=30, what="the start of the bare routes")
    yield f"http://{LOOPBACK}:{port}"
    process.terminate()
    process.wait()


async def _poll(port: int, request: bytes, until: float, pause_seconds: float, found: list[tuple[int, float]]) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    while time.monotonic() < until:
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        found.append((int(head[9:12]), time.perf_counter() - started))
        if pause_seconds:
            await asyncio.sleep(pause_seconds)
    writer.close()


def poll(url: str, path: str, key: str, *, clients: int, seconds: float, pause_seconds: float = 0) -> list[Any]:
    """(status, seconds) of every request of that many clients."""
    request = f"GET {path} HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    found: list[tuple[int, float]] = []

    async def run() -> None:
        until, port = time.monotonic() + seconds, int(url.rsplit(":", 1)[1])
        await asyncio.gather(*(_poll(port, request, until, pause_seconds, found) for _ in range(clients)))

    asyncio.run(run())
    return found


def form(size_bytes: int, salt: bytes) -> list[bytes]:
    """The pieces of a POST /jobs whose model has that size."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{SPEC.decode()}\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"; filename="m.pt"\r\n\r\n'
    )
    block = os.urandom(MIB)
    return [head.encode() + MODEL + salt, *[block] * (size_bytes // MIB), f"\r\n--{BOUNDARY}--\r\n".encode()]


async def _pieces(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def upload_for(url: str, key: str, seconds: float, number: int) -> list[int]:
    """The statuses of uploads of 50 MB, one after the other by each of the uploaders."""
    statuses: list[int] = []
    headers = {"Authorization": f"Bearer {key}", "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    async def one(client: httpx.AsyncClient, name: int, until: float) -> None:
        while time.monotonic() < until:
            content = _pieces(form(UPLOAD_BYTES, f"{name} {time.time()}".encode()))
            statuses.append((await client.post(f"{url}/v1/jobs", content=content, headers=headers)).status_code)

    async def run() -> None:
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=number)) as client:
            until = time.monotonic() + seconds
            await asyncio.gather(*(one(client, name, until) for name in range(number)))

    asyncio.run(run())
    return statuses


def percentile(found: list[Any], share: float) -> float:
    """In milliseconds."""
    times = sorted(seconds for _, seconds in found)
    return 1000 * times[min(int(share * len(times)), len(times) - 1)]


def resident_bytes(pid: int) -> int:
    """What the process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def polls_and_uploads(gateway: Any, path: str, seconds: float, pool: Any) -> None:
    """200 pollers, twice a second each, alone and beside 20 uploads of 50 MB."""
    ask = {"clients": POLLERS, "seconds": seconds, "pause_seconds": 0.5}
    alone = pool.apply(poll, (gateway.url, path, gateway.key), ask)
    beside = pool.apply_async(poll, (gateway.url, path, gateway.key), ask)
    uploads = pool.apply(upload_for, (gateway.url, gateway.key, seconds, UPLOADERS))
    loaded = beside.get()
    errors = sum(status >= 500 for status, _ in loaded) + sum(status >= 500 for status in uploads)
    ratio = percentile(loaded, 0.99) / percentile(alone, 0.99)
    for name, found in (("alone", alone), ("beside uploads", loaded)):
        p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
        print(f"(a) pollers {name}: {len(found)} answers, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"(a) uploads: {len(uploads)} of 50 MB; 5xx: {errors}; p99 {ratio:.1f} x that of the pollers alone")


def throughput(gateway: Any, bare: str, job_id: str, seconds: float, pool: Any) -> None:
    """Eight clients without a pause, gateway and bare route in turns."""
    rates: dict[str, list[float]] = {"gateway": [], "bare": []}
    for _ in range(5):
        for name, url, path in (("gateway", gateway.url, f"/v1/jobs/{job_id}"), ("bare", bare, f"/jobs/{job_id}")):
            found = pool.apply(poll, (url, path, gateway.key), {"clients": 8, "seconds": seconds / 10})
            assert all(status == 200 for status, _ in found)
            rates[name].append(len(found) / (seconds / 10))
    own, plain = median(rates["gateway"]), median(rates["bare"])
    print(f"(b) GET /jobs/{{id}}: {own:.0f}/s; a bare route: {plain:.0f}/s; {own / plain:.2f} x")


def large_upload(gateway: Any, bare: str, size_bytes: int) -> None:
    """One file, to the gateway and to the bare route, in turns."""
    seconds: dict[str, list[float]] = {"gateway": [], "bare": []}
    headers = {"Authorization": f"Bearer {gateway.key}", "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    before, peak = resident_bytes(gateway.process.pid), 0
    for number in range(3):
        for name, url in (("gateway", f"{gateway.url}/v1/jobs"), ("bare", f"{bare}/upload")):
            started = time.perf_counter()
            content = iter(form(size_bytes, str(number).encode()))
            answer = httpx.post(url, content=content, headers=headers, timeout=600)
            assert answer.is_success, answer.text
            seconds[name].append(time.perf_counter() - started)
            peak = max(peak, resident_bytes(gateway.process.pid))
    own, plain = median(seconds["gateway"]), median(seconds["bare"])
    grown = (peak - before) / MIB
    print(f"(c) {size_bytes // MIB} MB: {own:.2f} s; a bare route: {plain:.2f} s; {own / plain:.2f} x; +{grown:.0f} MB")


@contextmanager
def running_worker(settings: Settings, log: Path) -> Any:
    """A worker with the real engine."""
    environment = {**os.environ, **environment_of(settings), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.celery_app"],
            env=environment, stdout=output, stderr=output, preexec_fn=die_with_parent,
        )  # fmt: skip
    yield psutil.Process(process.pid)
    process.terminate()
    process.wait()


def engines_of(worker: psutil.Process) -> list[psutil.Process]:
    """Its engines, the oldest first: the one that has a job before the one that waits for the next."""
    found = [child for child in worker.children(recursive=True) if "archrepair_core.standby" in child.cmdline()]
    return sorted(found, key=psutil.Process.create_time)


def is_warm(worker: psutil.Process) -> bool:
    """Whether the engine that waits has nothing left to import: it did nothing for a second."""
    engines = engines_of(worker)
    if len(engines) != 1 or engines[0].memory_info().rss < WARM_BYTES:
        return False
    before = engines[0].cpu_times().user
    time.sleep(1)
    return engines[0].cpu_times().user == before


def start_and_cancel(gateway: Any, worker: psutil.Process, case: Path) -> None:
    """Jobs one after the other: from the answer to POST until one runs, and from a cancel until its engine is gone."""
    started, gone = [], []
    for _ in range(NUM_STARTS):
        wait_until(lambda: is_warm(worker), seconds=120, what="an engine that is warm")
        with (case / "model.pt").open("rb") as model, (case / "repair.npz").open("rb") as repair:
            parts = [("spec", (None, LONG_SPEC)), ("model", ("model.pt", model)), ("repair", ("repair.npz", repair))]
            job = gateway.client.post("/v1/jobs", files=parts).raise_for_status().json()
        asked_at = time.perf_counter()
        while gateway.client.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued":
            time.sleep(0.005)
        started.append(time.perf_counter() - asked_at)
        while gateway.client.get(f"/v1/jobs/{job['id']}").json()["phase"] in (None, "ingesting"):
            time.sleep(0.1)
        engine = engines_of(worker)[0]
        asked_at = time.perf_counter()
        gateway.client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        engine.wait(60)
        gone.append(time.perf_counter() - asked_at)
    for name, found in (("submit to running", started), ("cancel to engine gone", gone)):
        p50, p95 = 1000 * median(found), 1000 * sorted(found)[math.ceil(0.95 * len(found)) - 1]
        print(f"(d) {name}: {len(found)} jobs, p50 {p50:.0f} ms, p95 {p95:.0f} ms, longest {1000 * max(found):.0f} ms")


def main() -> None:
    """Everything on one stack, in one run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stack", nargs="?", default="embedded", choices=("embedded", "production"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--large-mb", type=int, default=1024)
    asked = parser.parse_args()
    with ExitStack() as stack, multiprocessing.get_context("spawn").Pool(2) as pool:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(running_broker())
        servers = stack.enter_context(running_stack(asked.stack, broker, directory / "template" / "state"))
        settings = servers.fresh(
            directory / "state", one_shot_body_bytes=4096 * MIB, quota_queued_jobs=10**6, rate_limit_reads=10**9
        )
        gateway = launch_gateway(settings, directory / "gateway.log")
        stack.callback(gateway.process.kill)
        bare = stack.enter_context(running_bare(settings.database_url, directory))
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        job_id = gateway.client.post("/v1/jobs", content=b"".join(form(MIB, b"")), headers=headers).json()["id"]
        print(f"{asked.stack}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        throughput(gateway, bare, job_id, asked.seconds, pool)
        polls_and_uploads(gateway, f"/v1/jobs/{job_id}", asked.seconds, pool)
        large_upload(gateway, bare, asked.large_mb * MIB)
        gateway.process.kill()
        # What the others left behind in the queue would be worked off first.
        settings = servers.fresh(directory / "second-state")
        gateway = launch_gateway(settings, directory / "gateway.log")
        stack.callback(gateway.process.kill)
        make_case(directory, seed=0)
        worker = stack.enter_context(running_worker(settings, directory / "worker.log"))
        start_and_cancel(gateway, worker, directory)


if __name__ == "__main__":
    main()
