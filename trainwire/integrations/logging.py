"""A handler for Python's `logging` that hands every record to a run."""

from __future__ import annotations

import logging
from typing import Final

from trainwire.ingest.process.log_filter import is_own_thread
from trainwire.ingest.run import Run

OWN_LOGGERS: Final = "trainwire."


class RunHandler(logging.Handler):
    """Records become log lines with their level, a traceback one line each.

    Left out is what trainwire itself and the libraries on its threads say while they send: it would make more to
    send. There is nothing to flush: a record is with the run when the call that logged it returns.
    """

    def __init__(self, run: Run, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._run = run
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record that passes the filters and is not trainwire's own; return whether it did.

        Without the handler's lock, which others hold for long: a run takes lines from any thread, and one of them
        may be waiting for room in it.
        """
        passed = not _is_own(record) and self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record on; one that cannot be formatted is shown on stderr, as every handler does it."""
        try:
            self._run.log(self.format(record), log_type="stderr", level=record.levelname)
        except Exception:  # noqa: BLE001 - foreign code: the arguments of a record
            self.handleError(record)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.startswith(OWN_LOGGERS) or is_own_thread()
