"""`python -m trainwire.gateway`: the gateway as a process, with its settings from the environment."""

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
"""How long requests that are under way may take when the process is to end."""
BACKLOG = 4096
"""Browsers that come back all at once after a restart wait here."""
MAX_SOCKETS = 10_240
"""As many as macOS lets a process have."""
MAX_CLIENT_MESSAGE_BYTES = 64 * 1024
"""What a browser says over its WebSocket is not listened to."""


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
        access_log=False,  # an address says who looked at what
        server_header=False,
        proxy_headers=False,  # trainwire.gateway.http.proxies; uvicorn's own trusts 127.0.0.1 by default
        # On h11: httptools, where installed, keeps a URL and headers of any length before it knows who asks.
        http=http_protocol(app.state.telemetry.count_cut),
        ws=FrameProtocol,
        ws_per_message_deflate=False,
        ws_max_size=MAX_CLIENT_MESSAGE_BYTES,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
    )


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files as far as the hard one lets us: the usual 1,024 are few browsers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_SOCKETS)), hard))


def configure_logging() -> None:
    """Send our events to stderr as JSON lines, and what libraries say as text."""
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
