"""A handler for Python's `logging` that logs every record to a run."""

from __future__ import annotations

import logging
from typing import Final

from trainwire.ingest.process.log_filter import is_own_thread
from trainwire.ingest.run import Run

OWN_LOGGERS: Final = "trainwire."


class RunHandler(logging.Handler):
    """Logs records as lines with their level, a traceback line by line.

    Records of trainwire itself and of libraries in its threads are left out: sending them would cause more of
    them. There is nothing to flush: the run has a record when the logging call returns.
    """

    def __init__(self, run: Run, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._run = run
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def handle(self, record: logging.LogRecord) -> bool:
        """Log a record that passes the filters and is not trainwire's own; return whether it was logged.

        The lock of the handler is not taken: a run takes lines from any thread, and one thread may wait for room.
        """
        passed = not _is_own(record) and self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record to the run; one that cannot be formatted is printed to stderr, as by every handler."""
        try:
            self._run.log(self.format(record), log_type="stderr", level=record.levelname)
        except Exception:  # noqa: BLE001 - foreign code: the arguments of a record
            self.handleError(record)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.startswith(OWN_LOGGERS) or is_own_thread()
