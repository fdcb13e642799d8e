"""Finds the Python traceback of a failed job in its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, text

from trainwire.stores.postgres.jobs.job_lookup import Job

MAX_TRACEBACK_CHARS: Final = 100_000
_LINE_CHARS: Final = 1000
_LATEST_LINES: Final = 2000
"""Number of last lines that are searched for a traceback."""
_TRACEBACK_HEADER: Final = "Traceback (most recent call last):"
_CONNECTORS: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_LINES_TO_CONNECTOR: Final = 2
"""Number of lines from the header of a traceback back to the text that connects it with the previous exception.

One line between them is empty.
"""

_REPORTED_TRACEBACK: Final = text(
    "SELECT left(content, :chars) FROM training_logs WHERE job_id = :job_id AND seq > :after "
    "AND log_type = 'stderr' AND attempt = :attempt AND starts_with(content, 'TRACEBACK:') "
    "ORDER BY seq DESC LIMIT 1"
)
_LINES_OF_TRACEBACK: Final = text(
    "SELECT left(content, :chars) FROM training_logs, ("
    "SELECT source, log_type FROM training_logs WHERE job_id = :job_id AND seq > :after "
    "AND attempt = :attempt AND content = :header ORDER BY seq DESC LIMIT 1) AS found "
    "WHERE job_id = :job_id AND seq > :after AND attempt = :attempt "
    "AND training_logs.source = found.source AND training_logs.log_type = found.log_type ORDER BY seq"
)
"""Query for the last lines of the source and log type (stdout or stderr) that printed the newest traceback."""


def find_traceback(connection: Connection, job: Job) -> str | None:
    """Return the traceback that the newest attempt's completion reported, otherwise the last one printed, or None.

    Only the job's last _LATEST_LINES lines are searched. The text has at most MAX_TRACEBACK_CHARS characters, and
    printed lines are shortened to _LINE_CHARS.
    """
    names: dict[str, Any] = {
        "job_id": job.id,
        "attempt": job.attempt,
        "after": job.last_log_seq - _LATEST_LINES,
    }
    reported = connection.execute(_REPORTED_TRACEBACK, names | {"chars": MAX_TRACEBACK_CHARS}).scalar_one_or_none()
    if reported is not None:
        return str(reported)
    names |= {"chars": _LINE_CHARS, "header": _TRACEBACK_HEADER}
    printed = last_traceback(connection.execute(_LINES_OF_TRACEBACK, names).scalars().all())
    return None if printed is None else printed[-MAX_TRACEBACK_CHARS:]


def last_traceback(lines: Sequence[str]) -> str | None:
    """Return the last traceback in lines of output, with its chained exceptions; None if there is none."""
    headers = [number for number, line in enumerate(lines) if line == _TRACEBACK_HEADER]
    if not headers:
        return None
    first = last = headers.pop()
    while headers and first >= _LINES_TO_CONNECTOR and lines[first - _LINES_TO_CONNECTOR] in _CONNECTORS:
        first = headers.pop()
    rest = range(last + 1, len(lines))
    end = next((number for number in rest if not lines[number].startswith(" ")), len(lines) - 1)
    return "\n".join(lines[first : end + 1])
