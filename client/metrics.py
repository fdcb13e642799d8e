"""The metrics of a job as arrays of the standard library, and as data frames of pandas, polars and Arrow."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from trainwire.client.errors import ClientError
from trainwire.schemas.lifted_metrics import COLUMN_OF
from trainwire.schemas.metric_download import EPOCH_US, INTEGERS, MetricBlock, Packed

_TYPECODES: Final = {name: "i" if size == array("i").itemsize else "q" for name, size in INTEGERS.items()}
Optional = Sequence[int | None]


class Series(NamedTuple):
    """All points of one metric as columns of equal length, in the order of `seq`.

    `value` has doubles, `ts` has nanoseconds since 1970. `rank`, `epoch` and `step` may contain None.
    """

    name: str
    seq: Sequence[int]
    attempt: Sequence[int]
    rank: Optional
    epoch: Optional
    step: Optional
    ts: Sequence[int]
    value: Sequence[float]


class _Column:
    """One column of a table in which some rows may lack a value.

    `values` has the existing values, and `rows` has their row indexes. `rows` is None while no row lacks a value.
    """

    def __init__(self, typecode: str) -> None:
        self.values = array(typecode)
        self.rows: array[int] | None = None

    def add(self, packed: Packed, rows_before: int, seqs: array[int]) -> None:
        """Append the values that one downloaded block has for this column.

        `rows_before` is the number of rows in earlier blocks, and `seqs` has the sequence number of each row of
        the block.
        """
        new = _unpacked(self.values.typecode, packed.values)
        is_gapless = packed.seqs is None and len(self.values) == rows_before
        if self.rows is None and not is_gapless:
            self.rows = array("q", range(len(self.values)))
        if self.rows is not None and packed.seqs is None:
            self.rows.extend(range(rows_before, rows_before + len(new)))
        elif self.rows is not None and packed.seqs is not None:
            places = _unpacked("q", packed.seqs)
            self.rows.extend(rows_before + bisect_left(seqs, seq) for seq in places)
        self.values.extend(new)

    def has_all(self, rows: int) -> bool:
        return self.rows is None and len(self.values) == rows

    def full(self, rows: int) -> Sequence[Any]:
        """Return one value for each of the table's `rows` rows, None if the row has no value."""
        if self.has_all(rows):
            return self.values
        full: list[Any] = [None] * rows
        for at, value in zip(
            range(len(self.values)) if self.rows is None else self.rows, self.values, strict=True
        ):
            full[at] = value
        return full


class Metrics(Mapping[str, Series]):
    """All points of a job's metrics: `metrics["loss"]` is one series, `columns` is a table of all of them.

    Each call of `run.metric` is one row. A metric without a value in a row is None there; NaN and infinities are
    values. If a metric is stored under another name (`acc` as `accuracy`), `metrics[...]` accepts either name.
    """

    def __init__(self, job_id: int, blocks: Iterable[MetricBlock]) -> None:
        self.job_id = job_id
        self._rows = 0
        self._about = {name: _Column(code) for name, code in _TYPECODES.items()}
        self._metrics: dict[str, _Column] = {}
        for block in blocks:
            self._add(block)
        times = self._about["time"].values
        self._about["time"].values = array("q", [(time + EPOCH_US) * 1000 for time in times])

    def _add(self, block: MetricBlock) -> None:
        seqs = _unpacked("q", block.columns["seq"].values)
        for name, packed in block.columns.items():
            self._about[name].add(packed, self._rows, seqs)
        for name, packed in block.metrics.items():
            self._metrics.setdefault(name, _Column("d")).add(packed, self._rows, seqs)
        self._rows += block.rows

    def __repr__(self) -> str:
        return f"<Metrics of job {self.job_id}: {len(self._metrics)} metrics, {self._rows:,} rows>"

    def __len__(self) -> int:
        return len(self._metrics)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._metrics))

    def __getitem__(self, name: str) -> Series:
        column = self._metrics.get(name) or self._metrics.get(COLUMN_OF.get(name, name))
        if column is None:
            raise KeyError(
                f"job {self.job_id} has no metric {name!r} here: {', '.join(list(self)[:20]) or 'none were found'}"
            )
        about = {each: found.full(self._rows) for each, found in self._about.items()}
        if not column.has_all(self._rows):
            rows = range(len(column.values)) if column.rows is None else column.rows
            about = {each: [values[row] for row in rows] for each, values in about.items()}
        ts = about.pop("time")
        return Series(name=name, ts=ts, value=column.values, **about)

    @property
    def rows(self) -> int:
        """The number of rows in the table, one for each call of `run.metric`."""
        return self._rows

    @property
    def columns(self) -> dict[str, Sequence[Any]]:
        """The table: columns `seq attempt rank epoch step ts`, then one column per metric.

        A cell without a value is None. A metric that is named like one of the first columns, for example `step`,
        has the prefix `metric.`.
        """
        return {name: column.full(self._rows) for name, column in self._named()}

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`. A missing metric value becomes NaN.

        Integer columns with missing values have the type `Int64`. To distinguish NaN from a missing value, use
        `columns` or `metrics[name]`. Raises `ClientError` if pandas or NumPy is not installed.
        """
        pandas, numpy = _library("pandas"), _library("numpy")
        frame = {}
        for name, column in self._named():
            values = numpy.frombuffer(column.values, column.values.typecode)
            is_missing = numpy.ones(self._rows, bool)
            at = slice(len(values)) if column.rows is None else numpy.frombuffer(column.rows, "q")
            is_missing[at] = False
            full = numpy.full(self._rows, float("nan") if values.dtype.kind == "f" else 0, values.dtype)
            full[at] = values
            is_whole = values.dtype.kind != "f" and is_missing.any()
            frame[name] = pandas.arrays.IntegerArray(full.astype("int64"), is_missing) if is_whole else full
        return pandas.DataFrame(frame)

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table`. A missing metric value becomes null; NaN stays NaN.

        Raises `ClientError` if pyarrow is not installed.
        """
        arrow = _library("pyarrow")
        types = {"d": arrow.float64(), "q": arrow.int64(), "i": arrow.int32()}
        columns = {}
        for name, column in self._named():
            kind = types[column.values.typecode]
            if column.has_all(self._rows):
                buffers = [None, arrow.py_buffer(column.values)]
                columns[name] = arrow.Array.from_buffers(kind, self._rows, buffers)
            else:
                columns[name] = arrow.array(column.full(self._rows), kind)
        return arrow.table(columns)

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame`. A missing metric value becomes null; NaN stays NaN.

        Raises `ClientError` if polars is not installed.
        """
        polars = _library("polars")
        types = {"d": polars.Float64, "q": polars.Int64, "i": polars.Int32}
        return polars.DataFrame(
            [
                polars.Series(name, list(column.full(self._rows)), dtype=types[column.values.typecode])
                for name, column in self._named()
            ]
        )

    def _named(self) -> Iterator[tuple[str, _Column]]:
        taken = {"ts" if name == "time" else name for name in self._about}
        for name, column in self._about.items():
            yield "ts" if name == "time" else name, column
        for name in self:
            shown = name
            while shown in taken or (shown != name and shown in self._metrics):
                shown = f"metric.{shown}"
            yield shown, self._metrics[name]


def _unpacked(typecode: str, packed: bytes) -> array[Any]:
    values = array(typecode)
    values.frombytes(packed)
    if sys.byteorder == "little":
        values.byteswap()
    return values


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as exc:
        raise ClientError(f"{name} is not installed: pip install {name}, or use `columns`") from exc


assert {name: array(code).itemsize for name, code in _TYPECODES.items()} == INTEGERS  # noqa: S101 - of this platform
