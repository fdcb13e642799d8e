"""Size limits of messages and their parts, enforced by trainers and workers (docs/wire-format.md).

Each part is checked before it is decoded, so that a small entry cannot exhaust the memory of a worker.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_BODY_BYTES: Final = 32 * MIB
"""Largest size of a body after decompression."""
MAX_ITEMS: Final = 100_000
"""Largest number of lines or points in a message, and of values in a point."""
MAX_RESULTS: Final = 10_000
"""Largest number of values in `final_metrics`, `best_metrics` and a checkpoint's `metrics`; each is in one row."""
MAX_VALUES: Final = 200_000
"""Largest total number of values in all points of a message."""
MAX_FREE_BYTES: Final = MIB
"""Largest encoded size of `params`, of `tags` and of `provenance`."""
MAX_FREE_ELEMENTS: Final = 100_000
"""Largest number of names and values, at all depths, in `params`, in `tags` and in `provenance`.

The number is limited as well as the size, because an empty list is 1 byte encoded and 64 bytes in memory.
"""
MAX_FREE_DEPTH: Final = 50

MAX_LINE_CHARS: Final = 16 * MIB
MAX_LEVEL_CHARS: Final = 100
MAX_METRIC_NAME_CHARS: Final = 1000
MAX_TEXT_CHARS: Final[dict[str, int]] = {
    "name": 1000,
    "mlflow_run_id": 1000,
    "kind": 1000,
    "uri": 8 * KIB,
    "checkpoint_path": 8 * KIB,
    "final_checkpoint_path": 8 * KIB,
    "best_checkpoint_path": 8 * KIB,
    "last_checkpoint_path": 8 * KIB,
    "sha256": 1000,
    "store_checksum": 1000,
    "upload_error": 64 * KIB,
    "error_message": 64 * KIB,
    "traceback": MIB,
}
"""Field -> largest number of characters."""
MAX_ALERTS: Final = 1000
"""Largest number of alerts in a message."""
MAX_ALERT_TITLE_CHARS: Final = 250
MAX_ALERT_TEXT_CHARS: Final = 10_000
MAX_SOURCE_CHARS: Final = 200
MAX_KILLED: Final = 256
"""Largest number of killed sources in the completion of a launcher."""

UNCOUNTED_BYTES: Final = 128 * KIB
"""Size up to which a body is decoded without counting its elements: it then takes at most ten megabytes of memory.
"""
MAX_REPAIRED_ELEMENTS: Final = 3 * MAX_ITEMS
"""Largest number of elements in a body with invalid UTF-8, which has to be decoded into untyped objects."""
