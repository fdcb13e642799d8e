"""The schema of neptune-exporter's parquet files, which migration tools read and write."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from trainwire.schemas.extras import install_hint
from trainwire.stack.errors import Problem

MAX_STEP: Final = 10**12 - 1
"""Largest step: the column is a decimal of 18 digits, 6 of them after the point."""
SERIES: Final = "float_series"
TEXTS: Final = "string_series"
VALUE_COLUMNS: Final = {
    "int": "int_value",
    "float": "float_value",
    "string": "string_value",
    "bool": "bool_value",
    "datetime": "datetime_value",
    "string_set": "string_set_value",
}
"""Type of an attribute that has a single value -> the column of its value."""


def arrow() -> tuple[ModuleType, ModuleType]:
    """Return the modules `pyarrow` and `pyarrow.parquet`; raise `Problem` if they are not installed."""
    try:
        import pyarrow  # noqa: PLC0415 - an optional package, and half a second
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as exc:
        raise Problem(install_hint("pyarrow", "parquet")) from exc
    return pyarrow, pyarrow.parquet


def schema(pa: Any) -> Any:
    """Return the Arrow schema; each row is one value of one attribute of one run."""
    time = pa.timestamp("ms", tz="UTC")
    numbers = pa.list_(pa.float64())
    texts = [(name, pa.string()) for name in ("project_id", "run_id", "attribute_path", "attribute_type")]
    place = [("step", pa.decimal128(18, 6)), ("timestamp", time)]
    values = [
        ("int_value", pa.int64()),
        ("float_value", pa.float64()),
        ("string_value", pa.string()),
        ("bool_value", pa.bool_()),
        ("datetime_value", time),
        ("string_set_value", pa.list_(pa.string())),
        ("file_value", pa.struct([("path", pa.string())])),
        ("histogram_value", pa.struct([("type", pa.string()), ("edges", numbers), ("values", numbers)])),
    ]
    return pa.schema([*texts, *place, *values])
