"""Histograms of durations, stored in Postgres so that they survive the processes that measure them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import Final

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

BUCKETS_S: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0)
"""Upper bounds of the histogram buckets in seconds. One further bucket counts longer durations."""


def bucket_of(seconds: float) -> int:
    """Return the index of the bucket for a duration, in a Postgres array: the first index is 1."""
    return bisect_left(BUCKETS_S, seconds) + 1


def cumulated(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the buckets for a Prometheus histogram: (upper bound, number of durations up to it)."""
    bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts)), strict=True))


@contextmanager
def timed_delivery(engine: Engine, sink: str) -> Iterator[None]:
    """Measure the duration of one delivery to `sink`, whether it fails or not, and add it to the histogram."""
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        bucket = bucket_of(seconds)
        first = [int(place == bucket) for place in range(1, len(BUCKETS_S) + 2)]
        # A delivery must not fail because its duration cannot be counted.
        with suppress(SQLAlchemyError), engine.begin() as connection:
            connection.execute(_COUNT, {"sink": sink, "first": first, "bucket": bucket, "seconds": seconds})


_COUNT: Final = text(
    "INSERT INTO delivery_times AS known (sink, counts, seconds) VALUES (:sink, :first, :seconds) "
    "ON CONFLICT (sink) DO UPDATE SET counts[:bucket] = known.counts[:bucket] + 1, "
    "seconds = known.seconds + excluded.seconds"
)
