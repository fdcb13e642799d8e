"""Configures logging.

Events have a stable name and fields, and are written as JSON lines or, to a terminal, as text.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from trainwire.stores.sentry import report_event
from trainwire.stores.tracing import add_trace_ids

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    add_trace_ids,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

_CHATTY = ("celery.app.trace", "celery.beat", "celery.worker.strategy", "alembic.runtime.migration")
"""Loggers of which only warnings are logged, because they log success several times a second or at every start."""


def configure_logging(level: int = logging.INFO) -> None:
    """Write the log events of workers and of libraries to stderr, all in the same format."""
    terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[report_event, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
