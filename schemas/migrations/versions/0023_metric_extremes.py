"""Columns with the minimum and maximum of each metric series, by which jobs are sorted and filtered."""

import struct
from collections.abc import Iterator
from math import isnan

import sqlalchemy as sa
import zstandard
from alembic import op

revision = "0023"
down_revision = "0022"

_NUMBER_BYTES = 8
_SERIES_AT_ONCE = 2000
# Blocks that no coarser block covers, and the newest points: they have the extremes of all points of a series.
_TOP_BLOCKS = (
    "SELECT job_id, series, points FROM metric_blocks AS block WHERE level < 0 OR NOT EXISTS ("
    "SELECT FROM metric_blocks AS coarser WHERE coarser.job_id = block.job_id AND coarser.series = block.series "
    "AND coarser.level = block.level + 1 AND coarser.number = block.number / 4)"
)
_UPDATE = sa.text(
    "UPDATE metric_series AS series SET low = least(series.low, found.low), "
    "high = greatest(series.high, found.high) "
    "FROM unnest(CAST(:jobs AS bigint[]), CAST(:series AS integer[]), CAST(:lows AS double precision[]), "
    "CAST(:highs AS double precision[])) AS found(job, number, low, high) "
    "WHERE series.job_id = found.job AND series.series = found.number"
)


def upgrade() -> None:
    # Without a value that is a number, `low` is above `high`.
    for name, default, which in (("low", "Infinity", "lowest"), ("high", "-Infinity", "highest")):
        column: sa.Column[float] = sa.Column(name, sa.Double(), nullable=False, server_default=default)
        column.comment = f"the {which} value in blocks"
        op.add_column("metric_series", column)
    connection = op.get_bind()
    for batch in _batches(connection):
        jobs, series = zip(*batch, strict=True)
        lows, highs = zip(*batch.values(), strict=True)
        found = {"jobs": list(jobs), "series": list(series), "lows": list(lows), "highs": list(highs)}
        connection.execute(_UPDATE, found)


def _batches(connection: sa.Connection) -> Iterator[dict[tuple[int, int], tuple[float, float]]]:
    """Yield batches with the minimum and maximum of each metric series, computed from its blocks."""
    found: dict[tuple[int, int], tuple[float, float]] = {}
    blocks = sa.text(_TOP_BLOCKS).execution_options(yield_per=_SERIES_AT_ONCE)
    for job, series, points in connection.execute(blocks):
        numbers = [value for value in _values(bytes(points)) if not isnan(value)]
        if not numbers:
            continue
        low, high = found.get((job, series), (float("inf"), float("-inf")))
        found[job, series] = min(low, *numbers), max(high, *numbers)
        if len(found) >= _SERIES_AT_ONCE:
            yield found
            found = {}
    if found:
        yield found


def _values(block: bytes) -> tuple[float, ...]:
    """Decode the values in a block of encoding 1 (stores/rows/metric_blocks.py)."""
    _, size = struct.unpack_from("<BI", block)
    by_place = zstandard.ZstdDecompressor().decompress(block[struct.calcsize("<BI") + size :])
    count = len(by_place) // _NUMBER_BYTES
    numbers = bytearray(len(by_place))
    for place in range(_NUMBER_BYTES):
        numbers[place::_NUMBER_BYTES] = by_place[place * count : (place + 1) * count]
    return struct.unpack(f"<{count}d", numbers)


def downgrade() -> None:
    op.drop_column("metric_series", "high")
    op.drop_column("metric_series", "low")
