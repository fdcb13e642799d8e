"""The application: what answers which path, and what stands before all of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from trainwire.gateway.feed.clients.routes import feed_router
from trainwire.gateway.feed.first_frames import feed_of, open_feed_engine
from trainwire.gateway.http import problems
from trainwire.gateway.http.answers import describe
from trainwire.gateway.http.head_requests import Heads
from trainwire.gateway.http.limits import BodyLimit, RateLimit
from trainwire.gateway.http.origins import Origins, SecurityHeaders
from trainwire.gateway.http.proxies import RootPath, TrustedProxies
from trainwire.gateway.resources import open_resources
from trainwire.gateway.routes import (
    callbacks,
    checkpoints,
    comparison,
    deletion,
    health,
    jobs,
    logs,
    metrics,
    mlflow,
    session,
)
from trainwire.gateway.settings import GatewaySettings
from trainwire.gateway.telemetry import Telemetry

PAGE: Final = Path(__file__).parent / "page"
ROUTERS: Final = (
    feed_router,  # these two before /jobs/{job_id}: `events` and `compare` are no numbers
    comparison.router,
    jobs.router,
    deletion.router,
    logs.router,
    metrics.router,
    checkpoints.router,
    mlflow.router,
    callbacks.router,
    session.router,
    health.router,
)
DESCRIPTION: Final = (
    "Jobs, their logs, metrics and checkpoints, and whether everything they said has arrived. Numbers that JSON "
    "cannot say are the strings NaN, Infinity and -Infinity; times named `ts` are nanoseconds since 1970, all "
    "others RFC 3339. Errors are problem documents (RFC 9457)."
)


class PageFiles(StaticFiles):
    """Files that a browser asks for anew each time: after an update no old module may meet a new one."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or 304 where the browser has it."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the gateway for these settings; it connects to the stores when they are first asked for."""
    found = open_resources(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = open_feed_engine(settings)
        async with feed_of(settings, engine, found.metric_names) as feed:
            app.state.feed = feed
            yield
        engine.dispose()
        found.close()

    telemetry = Telemetry()
    app = FastAPI(
        title="trainwire",
        version=importlib.metadata.version("trainwire"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its pages load their scripts from elsewhere
        redoc_url=None,
        servers=[{"url": "./"}],  # relative to /openapi.json, which a proxy may serve below a path of its own
        middleware=[
            Middleware(RootPath, root_path=settings.gateway_root_path),
            Middleware(TrustedProxies, trusted=settings.trusted_proxies),
            Middleware(SecurityHeaders),
            Middleware(telemetry.middleware),
            Middleware(Origins, loopback_only=not settings.is_auth_on),
            Middleware(RateLimit, per_s=settings.gateway_requests_per_s),
            Middleware(BodyLimit, most_bytes=settings.gateway_max_body_bytes),
            Middleware(Heads),
        ],
    )
    app.state.resources, app.state.guard, app.state.telemetry = found, found.guard, telemetry
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    describe(app)
    _serve_page(app)
    return app


def _serve_page(app: FastAPI) -> None:
    """Serve the page's files where the package has them."""
    if not PAGE.is_dir():
        return

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", PageFiles(directory=PAGE), name="page")
