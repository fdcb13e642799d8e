"""Parquet files with unusual columns, read for an import."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from trainwire.cli.transfer.messages import messages_of
from trainwire.cli.transfer.parquet_schema import schema
from trainwire.cli.transfer.readers.parquet_import import parquet_runs
from trainwire.cli.transfer.runs import SourceRun, Tally
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Completion, Metrics
from trainwire.stack.errors import Problem

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
START = datetime(2026, 5, 1, tzinfo=UTC)


def table(**columns: Any) -> Any:
    """Return a table of two rows: values of the metric `loss`, unless other columns are given."""
    given = {
        "project_id": ["p", "p"],
        "run_id": ["r", "r"],
        "attribute_path": ["loss", "loss"],
        "attribute_type": ["float_series", "float_series"],
        "step": pa.array([1.0, 2.0]),
        "timestamp": pa.array([START, START], pa.timestamp("ms", tz="UTC")),
        "float_value": [0.5, 0.25],
    } | columns
    types = {field.name: field.type for field in schema(pa)}
    return pa.table({name: given.get(name, pa.nulls(2, kind)) for name, kind in types.items()})


def read(path: Path) -> Iterator[tuple[SourceRun, Tally, list[Any]]]:
    """Yield each run of a file with its counts and the bodies of its messages, all of which can be encoded."""
    for run in parquet_runs(path, ""):
        tally = Tally()
        messages = list(messages_of(run, tally))
        for message in messages:
            encode_entry(message)
        yield run, tally, [message.body for message in messages]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("step", ["1", "x"]),
        ("step", [[1], [2]]),
        ("timestamp", ["2026-05-01", "junk"]),
        ("timestamp", [1.5, 2.5]),
        ("float_value", ["0.5", "x"]),
        ("float_value", [{"a": 1}, {"a": 2}]),
        ("attribute_path", [b"loss", b"\xff"]),
    ],
    ids=str,
)
def test_a_column_that_cannot_be_converted_is_named(tmp_path: Path, column: str, values: list[Any]) -> None:
    """The file counts as damaged, and the reason has the column."""
    pq.write_table(table(**{column: pa.array(values)}), path := tmp_path / "a.parquet")
    ((_, tally, _),) = read(path)
    assert tally.taken["points"] == 0
    (problem,) = tally.problems
    assert f"{path}: column {column!r}: " in problem


@pytest.mark.parametrize(
    "columns",
    [
        {"step": [1, 2]},
        {"step": [Decimal("1.0"), Decimal("2.000")]},
        {"step": ["1", "2"]},
        {"timestamp": pa.array([START.replace(tzinfo=None)] * 2, pa.timestamp("ns"))},
        {"float_value": [Decimal("0.5"), Decimal("0.25")]},
        {"float_value": ["0.5", "0.25"]},
        {"attribute_path": pa.array(["loss", "loss"]).dictionary_encode()},
        {"attribute_type": [b"float_series", b"float_series"]},
    ],
    ids=["whole", "decimals", "texts", "nanoseconds", "values", "value texts", "dictionary", "bytes"],
)
def test_other_types_are_converted(tmp_path: Path, columns: dict[str, Any]) -> None:
    """Whole numbers, decimals, texts, other units of time and dictionaries are read as the schema's types."""
    pq.write_table(table(**columns), path := tmp_path / "a.parquet")
    ((_, tally, bodies),) = read(path)
    points = [point for body in bodies if isinstance(body, Metrics) for point in body.points]
    assert [(point.step, point.values["loss"]) for point in points] == [(1, 0.5), (2, 0.25)]
    assert (tally.problems, tally.skipped["points"]) == ([], {})


def test_a_number_beyond_the_exact_floats_is_rounded(tmp_path: Path) -> None:
    """A whole number above 2^53 is the nearest float."""
    pq.write_table(table(float_value=[2**62 + 1, 1]), path := tmp_path / "a.parquet")
    ((_, _, bodies),) = read(path)
    points = [point for body in bodies if isinstance(body, Metrics) for point in body.points]
    assert [point.values["loss"] for point in points] == [2.0**62, 1.0]


def test_times_that_cannot_be_stored_are_left_out(tmp_path: Path) -> None:
    """The start and the end of a run in the year 9999, or beyond the years of Python, are named, not stored."""
    times = pa.array([253_402_300_799_000, 2**55], pa.timestamp("ms", tz="UTC"))
    attributes = ["sys/creation_time", "sys/end_time"]
    content = table(attribute_path=attributes, attribute_type=["datetime"] * 2, datetime_value=times)
    pq.write_table(content, path := tmp_path / "a.parquet")
    ((_, tally, _),) = read(path)
    assert tally.notes == ["2 attributes are left out: their time is out of range"]


def test_an_error_message_may_be_a_number(tmp_path: Path) -> None:
    """An attribute of another type than ours is stored as a text."""
    attributes = {"attribute_path": ["sys/error_message", "sys/name"], "attribute_type": ["float", "float"]}
    pq.write_table(table(**attributes), path := tmp_path / "a.parquet")
    ((_, _, bodies),) = read(path)
    (end,) = (body for body in bodies if isinstance(body, Completion))
    assert end.error_message == "0.5"


def test_rows_without_a_run_are_read_once(tmp_path: Path) -> None:
    """A null id is an empty one, and not the text `None`, whose run has its own rows only."""
    pq.write_table(table(run_id=[None, "None"]), path := tmp_path / "a.parquet")
    assert {run.name: tally.taken["points"] for run, tally, _ in read(path)} == {"": 1, "None": 1}


def test_a_repeated_column_is_named(tmp_path: Path) -> None:
    """Two columns of one name cannot be told apart."""
    content = table().append_column("step", pa.array([1.0, 2.0]))
    pq.write_table(content, path := tmp_path / "a.parquet")
    with pytest.raises(Problem, match="has 2 columns 'step'"):
        list(parquet_runs(path, ""))
