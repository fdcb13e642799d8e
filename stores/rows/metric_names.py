"""A cache of the metric names of jobs: each row is read once, and the time per call is limited.

The names in rows that have blocks (`trainwire.stores.rows.metric_blocks`) are read from metric_series in one
query.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from threading import Lock
from typing import Final

from sqlalchemy import Connection, text

from trainwire.schemas.tables import LIFTED, ROLLUPS_CURSOR

MOST_JOBS: Final = 1000
MOST_NAMES: Final = 250_000
"""Largest number of metric names of one job; a trainer that logs more has a bug."""
MOST_BYTES: Final = 1024 * 1024
"""Largest total size of the names in one response."""
MOST_NAMES_OF_ALL: Final = 1_000_000
SLICE_ROWS: Final = 20_000
MOST_S: Final = 0.5
"""Time limit of one call in seconds; the next call continues."""

_NAMES: Final = text(
    "SELECT DISTINCT jsonb_object_keys(extra_metrics) FROM training_metrics "
    "WHERE job_id = :job_id AND seq > :after AND seq <= :last LIMIT :most"
)
_THROUGH: Final = text("SELECT confirmed_seq FROM delivery_cursors WHERE sink = :cursor AND job_id = :job_id")
_SERIES: Final = text("SELECT DISTINCT name FROM metric_series WHERE job_id = :job_id LIMIT :most")
_HAS_LIFTED: Final = ", ".join(f"count({name}) > 0" for name in LIFTED)
_LIFTED: Final = text(
    f"SELECT {_HAS_LIFTED} FROM training_metrics "  # noqa: S608 - our own columns
    "WHERE job_id = :job_id AND seq > :after AND seq <= :last"
)


@dataclass(frozen=True, slots=True)
class JobNames:
    """The metric names of one job that have been read so far.

    The rows with `seq` <= `covered`, and those with `after` < `seq` <= `last`, have been read.
    """

    after: int
    last: int
    names: frozenset[str] = frozenset()
    ordered: tuple[str, ...] = ()
    """The names in alphabetical order."""
    covered: int = 0

    def is_complete(self, last_seq: int) -> bool:
        """Return whether the names in all rows up to `last_seq` are known.

        Never True for a job with MOST_NAMES or more names.
        """
        return self.after <= self.covered and self.last == last_seq and len(self.names) < MOST_NAMES

    def next_slice(self, last_seq: int) -> tuple[int, int] | None:
        """Return the range of rows to read next, (after, last], at most SLICE_ROWS; None if all are read.

        New rows come first, then older rows from the newest to the oldest.
        """
        if self.last < last_seq:
            return self.last, min(self.last + SLICE_ROWS, last_seq)
        return (max(self.covered, self.after - SLICE_ROWS), self.after) if self.after > self.covered else None


class MetricNames:
    """Caches the metric names of at most MOST_JOBS jobs and about MOST_NAMES_OF_ALL names; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[int, JobNames] = OrderedDict()
        self._lock = Lock()

    def of(self, connection: Connection, job_id: int, last_seq: int) -> JobNames:
        """Return the metric names in the rows of a job up to `last_seq`, at most MOST_NAMES.

        A call reads no further slice of rows after MOST_S seconds. For a job with millions of rows, the first call
        thus reads only the newest rows, and each further call reads older ones until `is_complete`.
        """
        with self._lock:
            known = self._known.get(job_id)
        if known is None or last_seq < known.last:  # the job was deleted, and its number is used again
            known = JobNames(last_seq, last_seq)
        if known.after > known.covered:
            known = _with_series(connection, job_id, known)
        known = self._read_on(connection, job_id, known, last_seq)
        with self._lock:
            self._known[job_id] = known
            self._known.move_to_end(job_id)
            while len(self._known) > MOST_JOBS or self._is_too_much():
                self._known.popitem(last=False)
        return known

    def _read_on(self, connection: Connection, job_id: int, known: JobNames, last_seq: int) -> JobNames:
        deadline = self._clock() + MOST_S
        names, reached = set(known.names), known
        while (wanted := reached.next_slice(last_seq)) is not None and len(names) < MOST_NAMES:
            names |= _read(connection, job_id, *wanted)
            reached = replace(reached, after=min(reached.after, wanted[0]), last=max(reached.last, wanted[1]))
            if self._clock() >= deadline:
                break
        if len(names) > len(known.ordered):
            ordered = tuple(sorted(names)[:MOST_NAMES])
            reached = replace(reached, names=frozenset(ordered), ordered=ordered)
        return reached

    def _is_too_much(self) -> bool:
        return len(self._known) > 1 and sum(len(one.names) for one in self._known.values()) > MOST_NAMES_OF_ALL


def names_within(names: Sequence[str], most: int) -> list[str]:
    """Return the first of `names`: at most `most`, and at most MOST_BYTES in total."""
    sizes = accumulate(len(name.encode()) for name in names[:most])
    return [name for name, upto in zip(names, sizes, strict=False) if upto <= MOST_BYTES]


def _with_series(connection: Connection, job_id: int, known: JobNames) -> JobNames:
    """Return a copy of `known` with the names in all rows that have blocks, which are listed in metric_series."""
    through = connection.execute(_THROUGH, {"job_id": job_id, "cursor": ROLLUPS_CURSOR}).scalar_one_or_none() or 0
    if through <= known.covered:
        return known
    # Read after the cursor: the series of at least the rows up to there.
    found = connection.execute(_SERIES, {"job_id": job_id, "most": MOST_NAMES}).scalars()
    return replace(known, names=known.names.union(found), covered=through)


def _read(connection: Connection, job_id: int, after: int, last: int) -> frozenset[str]:
    bounds = {"job_id": job_id, "after": after, "last": last}
    lifted = connection.execute(_LIFTED, bounds).one()
    found = connection.execute(_NAMES, bounds | {"most": MOST_NAMES}).scalars()
    return frozenset(found) | {name for name, is_there in zip(LIFTED, lifted, strict=True) if is_there}
