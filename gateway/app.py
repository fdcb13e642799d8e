"""The ASGI application: its routes and its middleware."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from trainwire.gateway.feed.clients import sse, websocket
from trainwire.gateway.feed.live_feed import LiveFeed
from trainwire.gateway.http import problems
from trainwire.gateway.http.head_requests import HeadRequests
from trainwire.gateway.http.origins import Origins, SecurityHeaders
from trainwire.gateway.http.page_files import PageFiles
from trainwire.gateway.http.proxies import RootPath, TrustedProxies
from trainwire.gateway.http.request_limits import BodyLimit, RateLimit
from trainwire.gateway.http.responses import describe_structs
from trainwire.gateway.request_spans import request_spans
from trainwire.gateway.resources import open_resources
from trainwire.gateway.routes import (
    alert_routes,
    callback_routes,
    checkpoint_routes,
    comparison_routes,
    deletion_routes,
    edit_routes,
    health_routes,
    job_routes,
    log_routes,
    metric_routes,
    mlflow_routes,
    session_routes,
    stop_routes,
    trainer_routes,
)
from trainwire.gateway.settings import GatewaySettings
from trainwire.gateway.telemetry import Telemetry
from trainwire.stores.tracing import flush, is_tracing

PAGE: Final = Path(__file__).parent / "page"
ROUTERS: Final = (
    # The first three before /jobs/{job_id}, which `events` and `compare` would match.
    websocket.router,
    sse.router,
    comparison_routes.router,
    job_routes.router,
    deletion_routes.router,
    edit_routes.router,
    stop_routes.router,
    log_routes.router,
    metric_routes.router,
    checkpoint_routes.router,
    mlflow_routes.router,
    alert_routes.router,
    callback_routes.router,
    trainer_routes.router,
    session_routes.router,
    health_routes.router,
)
DESCRIPTION: Final = (
    "Jobs, their logs, metrics and checkpoints, and whether all their messages are stored. NaN and infinities are "
    "the strings NaN, Infinity and -Infinity; times named `ts` are nanoseconds since 1970, all others RFC 3339. "
    "Errors are problem documents (RFC 9457)."
)


def create_app(settings: GatewaySettings) -> FastAPI:
    """Create the gateway's ASGI application for `settings`; it connects to each store at its first use."""
    resources, telemetry = open_resources(settings), Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with LiveFeed(settings, resources.metric_names, resources.streams) as feed:
            app.state.feed = feed
            yield
        resources.close()
        flush()

    app = FastAPI(
        title="trainwire",
        version=importlib.metadata.version("trainwire"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from other hosts, which our security headers forbid
        redoc_url=None,
        servers=[{"url": "./"}],  # relative to /openapi.json: a proxy may add a path prefix
        middleware=[
            Middleware(RootPath, root_path=settings.gateway_root_path),
            Middleware(TrustedProxies, trusted=settings.trusted_proxies),
            Middleware(SecurityHeaders),
            Middleware(telemetry.middleware),
            *([Middleware(request_spans)] if is_tracing() else []),
            Middleware(Origins, loopback_only=not settings.is_auth_on),
            Middleware(RateLimit, per_s=settings.gateway_requests_per_s),
            Middleware(BodyLimit, max_bytes=settings.gateway_max_body_bytes),
            Middleware(HeadRequests),
            # Level 9, the default, takes eight times as long as 4 and saves only 4% more of a page of points.
            Middleware(GZipMiddleware, minimum_size=1000, compresslevel=4),
        ],
    )
    app.state.resources, app.state.authorizer, app.state.telemetry = resources, resources.authorizer, telemetry
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    describe_structs(app)
    _serve_page(app)
    return app


def _serve_page(app: FastAPI) -> None:
    """Add the routes of the web page, if its files are installed."""
    if not PAGE.is_dir():
        return

    files = PageFiles(PAGE)
    app.get("/", include_in_schema=False)(files.index)
    app.mount("/page", files, name="page")
