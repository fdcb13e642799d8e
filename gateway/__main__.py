"""Runs the gateway as a process: `python -m trainwire.gateway`."""

from __future__ import annotations

import logging
import resource
import sys

import structlog
import uvicorn

from trainwire.gateway.app import create_app
from trainwire.gateway.feed.protocol import FrameProtocol
from trainwire.gateway.http.timeouts import http_protocol
from trainwire.gateway.settings import load_gateway_settings
from trainwire.stores.settings import WrongSettings

GRACE_S = 5
"""Time limit of running requests after SIGTERM."""
BACKLOG = 4096
"""Length of the listen queue, for the browsers that reconnect all at once after a restart."""
MAX_OPEN_FILES = 10_240
"""The maximum of macOS."""
MAX_CLIENT_MESSAGE_BYTES = 64 * 1024
"""Messages of browsers over a WebSocket are read and ignored."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    configure_logging()
    try:
        settings = load_gateway_settings()
    except WrongSettings as exc:
        sys.exit(str(exc))
    _allow_many_sockets()
    app = create_app(settings)
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
    """Raise the soft limit of open files, by default often 1,024, which is too low for many browsers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_OPEN_FILES)), hard))


def configure_logging() -> None:
    """Write our log events to stderr as JSON lines, and those of libraries as text."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
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
