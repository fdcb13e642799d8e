"""A handler for Python's `logging` that logs every record to a run."""

from __future__ import annotations

import logging
from typing import Final

from trainwire.ingest.process.log_filter import is_own_thread
from trainwire.ingest.run import Run

OWN_LOGGERS: Final = "trainwire."


class RunHandler(logging.Handler):
    """Logs each record to a run, with its level.

    A record with a traceback becomes one log line per line of its text.

    Records of trainwire itself, and of libraries in its threads, are ignored, because sending them would produce
    further records. There is nothing to flush: the run has the record when the logging call returns.
    """

    def __init__(self, run: Run, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._run = run
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def handle(self, record: logging.LogRecord) -> bool:
        """Log a record that passes the filters and is not trainwire's own.

        Return whether it was logged.

        The handler's lock is not acquired: a run accepts lines from any thread, and one thread may block until the
        buffer has room.
        """
        passed = not _is_own(record) and self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record to the run.

        A record that cannot be formatted is reported on stderr, as by other handlers.
        """
        try:
            self._run.log(self.format(record), log_type="stderr", level=record.levelname)
        except Exception:  # noqa: BLE001 - foreign code: the arguments of a record
            self.handleError(record)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.startswith(OWN_LOGGERS) or is_own_thread()
