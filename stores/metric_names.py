"""The names of a job's metrics: read once from all of its rows, then from those that are new."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Final

from sqlalchemy import Connection, text

MOST_JOBS: Final = 1000
MOST_NAMES: Final = 2000
MOST_ROWS: Final = 500_000
"""Beyond so many, the newest are read: half a second of Postgres."""

_NAMES: Final = text(
    "SELECT DISTINCT jsonb_object_keys(extra_metrics) FROM training_metrics "
    "WHERE job_id = :job_id AND seq > :after AND seq <= :last LIMIT :most"
)
_LIFTED: Final = text(
    "SELECT count(loss) > 0, count(accuracy) > 0, count(learning_rate) > 0 FROM training_metrics "
    "WHERE job_id = :job_id AND seq > :after AND seq <= :last"
)


class MetricNames:
    """Remembers for each job up to which row its names are known; safe to use from several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[int, frozenset[str]]] = OrderedDict()
        self._lock = Lock()

    def of(self, connection: Connection, job_id: int, last_seq: int) -> list[str]:
        """Return the names in the rows of a job up to `last_seq`, in their order."""
        with self._lock:
            upto, names = self._known.get(job_id, (0, frozenset[str]()))
        if last_seq < upto:  # the job is another one: its rows were deleted
            upto, names = 0, frozenset()
        if upto < last_seq:
            names |= _read(connection, job_id, max(upto, last_seq - MOST_ROWS), last_seq)
        with self._lock:
            self._known[job_id] = (last_seq, names)
            self._known.move_to_end(job_id)
            if len(self._known) > MOST_JOBS:
                self._known.popitem(last=False)
        return sorted(names)


def _read(connection: Connection, job_id: int, after: int, last: int) -> frozenset[str]:
    bounds = {"job_id": job_id, "after": after, "last": last}
    lifted = connection.execute(_LIFTED, bounds).one()
    columns = ("loss", "accuracy", "learning_rate")
    found = connection.execute(_NAMES, bounds | {"most": MOST_NAMES}).scalars()
    return frozenset(found) | {name for name, is_there in zip(columns, lifted, strict=True) if is_there}
