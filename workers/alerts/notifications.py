"""Sends alerts to Slack, Discord, e-mail and other services that the library Apprise supports."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any, Final

from trainwire.schemas.extras import install_hint
from trainwire.workers.alerts.senders import AlertMessage, NotSent

_TYPES: Final = {"info": "INFO", "warning": "WARNING", "error": "FAILURE"}
_MASK: Final = "***"
_LEAST_SECRET_CHARS: Final = 4


class Notifications:
    """Sends alerts to one Apprise URL.

    The constructor raises `NotSent` if Apprise is missing or rejects the URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._service = self._open()

    def send(self, message: AlertMessage) -> None:
        """Send an alert.

        Raises `NotSent`, with the reason that Apprise logged, if the service did not accept it.
        """
        facts = f"Rule: {message.rule}"
        body = f"{message.content}\n\n{facts}" if message.content else facts
        with _CapturedLog() as captured:
            is_sent = self._service.notify(body=body, title=message.title, notify_type=self._types[message.level])
        if not is_sent:
            raise NotSent(self._masked(captured.reason or "the service did not accept the alert"))

    def _open(self) -> Any:
        try:
            import apprise  # noqa: PLC0415 - optional, and slow to import
        except ImportError as exc:
            raise NotSent(install_hint("apprise", "alerts")) from exc
        logging.getLogger("apprise").propagate = False  # its records may have parts of addresses
        self._types = {level: getattr(apprise.NotifyType, name) for level, name in _TYPES.items()}
        # A service alone, without the `Apprise` object around it, sends in this thread and not in one of its own.
        with _CapturedLog():
            service = apprise.Apprise.instantiate(self._url)
        if service is None:
            scheme = self._url.partition("://")[0]
            raise NotSent(
                f"Apprise does not understand this {scheme}:// address (https://appriseit.com/services/)"
            )
        return service

    def _masked(self, text: str) -> str:
        """Return `text` with all parts of the URL replaced, because the URL is a secret."""
        parts = re.split(r"[/:@?&=#,]+", self._url.partition("://")[2])
        for part in sorted({part for part in parts if len(part) >= _LEAST_SECRET_CHARS}, key=len, reverse=True):
            text = text.replace(part, _MASK)
        return text


class _CapturedLog(logging.Handler):
    """Stores the last warning that Apprise logs in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self.reason: str | None = None

    def __enter__(self) -> _CapturedLog:
        logging.getLogger("apprise").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("apprise").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Store the text of a log record, if it was logged in this thread."""
        if record.thread == self._thread:
            self.reason = record.getMessage()
