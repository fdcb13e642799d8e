"""Keeps log records of trainwire's own threads out of the log of the training."""

from __future__ import annotations

import logging
import threading
from typing import Final

OWN_THREADS: Final = "trainwire-"
LIBRARIES: Final = ("asyncio", "boto3", "botocore", "push_response", "redis", "s3transfer", "urllib3")
OURS: Final = ("trainwire.ingest", "trainwire.integrations")
_LAZY_LOGGERS: Final = ("push_response", "redis.connection")
"""Loggers of redis-py that do not exist before their first record."""


def is_own_thread() -> bool:
    """Return whether the current thread was started by trainwire."""
    return threading.current_thread().name.startswith(OWN_THREADS)


def quiet_libraries() -> None:
    """Suppress log records below WARNING that libraries write in trainwire's own threads.

    Only existing loggers are affected: call it after importing the libraries, and again after their first use.
    """
    for name in _LAZY_LOGGERS:
        logging.getLogger(name)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in LIBRARIES and isinstance(logger, logging.Logger):
            logger.addFilter(_is_wanted)


def quiet_ours() -> None:
    """Suppress trainwire's log records below INFO, unless a level is set for their logger or for `trainwire`.

    If the training has not configured logging, records begin with `trainwire:`, because Python then writes only
    their text to stderr.
    """
    for name in OURS:
        logging.getLogger(name).addFilter(_is_asked_for)
        logging.getLogger(name).addFilter(_with_prefix)


def _is_asked_for(record: logging.LogRecord) -> bool:
    names = ("trainwire", record.name)
    return record.levelno >= logging.INFO or any(logging.getLogger(name).level for name in names)


def _with_prefix(record: logging.LogRecord) -> bool:
    if not logging.getLogger(record.name).hasHandlers():
        record.msg = f"trainwire: {record.msg}"
    return True


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not is_own_thread()
