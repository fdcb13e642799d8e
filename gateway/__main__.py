"""Runs the gateway as a process: `python -m trainwire.gateway`."""

from __future__ import annotations

import atexit
import gc
import logging
import resource
import sys

import structlog
import uvicorn

from trainwire.gateway.app import create_app
from trainwire.gateway.feed.protocol import FrameProtocol
from trainwire.gateway.http.timeouts import http_protocol
from trainwire.gateway.settings import load_gateway_settings
from trainwire.stores.sentry import report_errors, report_event
from trainwire.stores.settings import WrongSettings
from trainwire.stores.tracing import add_trace_ids, trace_process

GRACE_S = 5
"""Seconds that running requests have to finish after SIGTERM, before uvicorn cancels them."""
BACKLOG = 4096
"""Length of the listen queue (TCP backlog): after a restart, all browsers reconnect at once."""
MAX_OPEN_FILES = 10_240
"""Soft limit on open files that the gateway requests at most; macOS accepts no higher value."""
MAX_CLIENT_MESSAGE_BYTES = 64 * 1024
"""Maximum size of a WebSocket message from a browser; the gateway reads these messages and ignores them."""


def main() -> None:
    """Run the gateway until SIGTERM or SIGINT; exit with an error message if a setting is invalid."""
    atexit.register(gc.freeze)  # as in trainwire.__main__: its exit takes a third of a second less CPU time
    configure_logging()
    try:
        settings = load_gateway_settings()
        report_errors(settings, "gateway")
        trace_process(settings, "gateway")
    except WrongSettings as exc:
        sys.exit(str(exc))
    _allow_many_sockets()
    app = create_app(settings)
    # Collections while a response is built find no garbage, and would look at all imported objects again.
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    uvicorn.run(
        app,
        host=settings.gateway_host,
        port=settings.gateway_port,
        log_config=None,
        access_log=False,  # it would log client addresses
        server_header=False,
        proxy_headers=False,  # trainwire.gateway.http.proxies; uvicorn's own trusts 127.0.0.1 by default
        # Based on h11: httptools buffers URLs and headers of any length before a request is authorized.
        http=http_protocol(app.state.telemetry.count_cut),
        ws=FrameProtocol,
        ws_per_message_deflate=False,
        ws_max_size=MAX_CLIENT_MESSAGE_BYTES,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
    )


def _allow_many_sockets() -> None:
    """Raise the soft limit on open files: the usual default of 1,024 is too low for many browsers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_OPEN_FILES)), hard))


def configure_logging() -> None:
    """Configure logging to stderr: the gateway's own log events as JSON lines, logs of libraries as plain text."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            report_event,
            structlog.contextvars.merge_contextvars,
            add_trace_ids,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
