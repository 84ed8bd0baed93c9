"""The gateway: `python -m uvicorn app.main:create_app --factory`. Takes jobs in and shows them; never imports torch."""

import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any

from fastapi import FastAPI
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from app.browser_sessions import BrowserSessions
from app.completions import Completions
from app.deps import Gateway
from app.errors import install_error_handlers
from app.feed import running_feed
from app.keys import KeyUses, KnownKeys
from app.limits import JSON_BODY_BYTES
from app.middleware import RequestBorder
from app.openapi import install_openapi
from app.prepare import prepare
from app.ratelimits import RateLimiter
from app.relay import start_relay, stop_relay
from app.routes import (
    artifacts,
    datasets,
    events,
    jobs,
    keys,
    logs,
    metrics,
    models,
    system,
    uploads,
    verdicts,
    webhooks,
)
from app.shared.db import make_engine, make_sessions, read_only, single_selects
from app.shared.gauges import DatabaseGauges
from app.shared.logs import configure_logs
from app.shared.metrics import begin_counting
from app.shared.queue import make_celery, ring
from app.shared.queueing import Looks
from app.shared.secret import service_secret
from app.shared.settings import Settings
from app.shared.storage import open_signer, open_store
from app.shared.tables import ApiKey
from app.shared.telemetry import start_tracing
from app.tracing import trace_requests
from app.ui.dashboard import mount_dashboard
from app.views import JobViews

# A gateway that froze loses its locks. Contents are moved within a store while they are held, which takes a while.
IDLE_SECONDS = 300.0
# For browsers of the origins an operator names. No cookies: a key in a header is the only credential there is.
CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
    "allow_headers": ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Range",
                      "X-Request-Id"],
    "expose_headers": ["Content-Disposition", "ETag", "Idempotent-Replayed", "Location", "RateLimit",
                       "RateLimit-Policy", "Repr-Digest", "Retry-After", "X-Request-Id"],
}  # fmt: skip


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI app. Connections are made when it starts, not here."""
    settings = settings or Settings()
    configure_logs(settings.log_level)
    begin_counting()
    app = FastAPI(
        title="ArchRepair", version=version("archrepair"), lifespan=partial(_lifespan, settings), redirect_slashes=False
    )
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins.split(), **CORS)
    app.add_middleware(RequestBorder, small_body_bytes=settings.spec_bytes + JSON_BODY_BYTES)
    install_error_handlers(app)
    install_openapi(app)
    app.state.tracing = start_tracing("archrepair-gateway")
    if app.state.tracing is not None:
        trace_requests(app, app.state.tracing)
    modules = (jobs, verdicts, events, logs, artifacts, models, datasets, uploads, keys, webhooks, system, metrics)
    app.state.api_routes = [route for module in modules for route in module.router.routes]
    for module in modules:
        app.include_router(module.router, prefix="/v1")
        app.include_router(module.router, include_in_schema=False)
    mount_dashboard(app)
    return app


@asynccontextmanager
async def _lifespan(settings: Settings, app: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as closing:
        celery = make_celery(settings)
        closing.callback(celery.close)
        if settings.database_url.startswith("sqlite"):
            await run_in_threadpool(prepare, settings)
        engine = make_engine(settings.database_url, idle_seconds=IDLE_SECONDS)
        closing.callback(engine.dispose)
        sessions, readers = make_sessions(engine), make_sessions(read_only(engine))
        with readers() as session:
            if session.scalar(select(ApiKey.id).limit(1)) is None:
                raise RuntimeError("the database has no API key yet: run `python -m app.prepare` once")
        secret = service_secret(settings)
        assert settings.broker_url is not None, "make_celery has refused it"
        rate_limiter = RateLimiter(settings.broker_url)
        closing.callback(rate_limiter.close)
        browser_sessions = BrowserSessions(settings.broker_url)
        closing.callback(browser_sessions.close)
        key_uses = KeyUses()
        relay, thread = start_relay(sessions, partial(ring, celery), key_uses.write)
        store = open_store(settings.store_url)
        completions = Completions(sessions, store, keep_seconds=settings.upload_seconds)
        stopping = closing.enter_context(_told_of_stop(settings.drain_seconds))
        app.state.gateway = Gateway(
            settings=settings,
            sessions=sessions,
            readers=readers,
            lookups=single_selects(engine),
            store=store,
            celery=celery,
            relay=relay,
            key_uses=key_uses,
            known_keys=KnownKeys(),
            completions=completions,
            signer=open_signer(settings.store_url, public_endpoint=settings.store_public_endpoint),
            rate_limiter=rate_limiter,
            browser_sessions=browser_sessions,
            gauges=DatabaseGauges(readers),
            feed=await closing.enter_async_context(running_feed(readers, stopping)),
            looks=Looks(settings.quota_running_jobs),
            job_views=JobViews(),
            stopping=stopping,
            service_secret=secret,
        )
        yield
        await run_in_threadpool(completions.stop)
        await run_in_threadpool(stop_relay, relay, thread)
        if app.state.tracing is not None:
            await run_in_threadpool(app.state.tracing.shutdown)


@contextmanager
def _told_of_stop(drain_seconds: float) -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, besides what the server does: it would wait out every long poll.

    The server hears of it after `drain_seconds`: until then a load balancer finds out by /readyz.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        handler = before[signal.Signals(number)]
        if not callable(handler):
            return
        if drain_seconds:
            timer = threading.Timer(drain_seconds, handler, (number, frame))
            timer.daemon = True
            timer.start()
        else:
            handler(number, frame)

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
