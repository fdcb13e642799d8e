"""Collects rows of training_metrics in columns, one set of columns per metric series."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, text

from trainwire.schemas.tables import LIFTED, LIFTED_SQL
from trainwire.stores.rows.metric_blocks import ABSENT, Column, Points

Key = tuple[str, int, int | None]
"""A metric series: name, attempt and rank."""
_FIRST_VALUE: Final = 6
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class _Group:
    """The metric rows of one attempt and rank, as columns.

    `metrics` maps each metric to its values, and to the indexes of the rows that have these values.
    """

    seqs: Column = field(default_factory=partial(array, "q"))
    steps: Column = field(default_factory=partial(array, "q"))
    times: Column = field(default_factory=partial(array, "q"))
    epochs: Column = field(default_factory=partial(array, "q"))
    metrics: dict[str, tuple[list[int], Column]] = field(default_factory=dict)


class MetricColumns:
    """Collects rows of training_metrics by series; if `names` is given, only the values of these metrics.

    `rows` and `values` count the rows and values read so far; `last_seq` is the `seq` of the last row.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = None if names is None else frozenset(names)
        self._groups: dict[tuple[int, int | None], _Group] = defaultdict(_Group)
        self.rows = 0
        self.values = 0
        self.last_seq = 0

    def read(self, connection: Connection, condition: str, bounds: dict[str, Any]) -> int:
        """Read the rows that match an SQL condition from training_metrics, and return their number.

        `condition` must end with an ORDER BY `seq`, and may have a LIMIT. `bounds` has the values of `job_id` and
        of the condition's parameters.
        """
        query = text(_ROWS.format(condition=condition))
        before = self.rows
        for row in connection.execute(query, bounds):
            self._add(row)
        return self.rows - before

    def series(self) -> Iterator[tuple[Key, Points]]:
        """Yield the key (name, attempt, rank) and the points of each series."""
        for (attempt, rank), group in self._groups.items():
            for name, (indexes, values) in group.metrics.items():
                yield (name, attempt, rank), _points(group, indexes, values)

    def _add(self, row: Any) -> None:
        seq, attempt, rank, time_us, step, epoch = row[:_FIRST_VALUE]
        group = self._groups[attempt, rank]
        index = len(group.seqs)
        group.seqs.append(seq)
        group.steps.append(ABSENT if step is None else step)
        group.times.append(time_us)
        group.epochs.append(ABSENT if epoch is None else epoch)
        named = {name: value for name, value in zip(LIFTED, row[_FIRST_VALUE:], strict=False) if value is not None}
        if row[-1] is not None:
            named |= _decode(row[-1])
        if self._names is not None:
            named = {name: named[name] for name in self._names & named.keys()}
        metrics = group.metrics
        for name, value in named.items():
            number = value if type(value) is float else _number(value)
            if number is None:
                continue
            if (known := metrics.get(name)) is None:
                known = metrics[name] = [], array("d")
            known[0].append(index)
            known[1].append(number)
        self.rows += 1
        self.values += len(named)
        self.last_seq = seq


def _points(group: _Group, indexes: list[int], values: Column) -> Points:
    columns = (group.seqs, group.steps, group.times, group.epochs)
    if len(indexes) < len(group.seqs):
        seqs, steps, times, epochs = (array("q", [column[index] for index in indexes]) for column in columns)
        return Points(seqs, steps, times, epochs, values)
    return Points(*columns, values)


def _number(value: Any) -> float | None:
    """Convert a value of `extra_metrics`, where NaN and infinities are strings; None if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


_ROWS: Final = (
    "SELECT seq, attempt, rank, CAST(extract(epoch FROM logged_at) * 1000000 AS bigint), step, epoch, "  # noqa: S608 - our own columns
    f"{LIFTED_SQL}, CAST(extra_metrics AS text) FROM training_metrics WHERE job_id = :job_id AND {{condition}}"
)
