"""Size limits of messages and their parts, for trainers and workers (docs/wire-format.md).

A part is checked before it is decoded, so that a small entry cannot use all memory.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_BODY_BYTES: Final = 32 * MIB
"""Largest body, after decompression."""
MAX_ITEMS: Final = 100_000
"""Most lines or points of a message, and most values of a point."""
MAX_RESULTS: Final = 10_000
"""Most values of `final_metrics`, `best_metrics` and `metrics` of a checkpoint: they are stored in one row."""
MAX_VALUES: Final = 200_000
"""Most values of all points of a message in total."""
MAX_FREE_BYTES: Final = MIB
"""Largest params and tags, each, encoded."""
MAX_FREE_ELEMENTS: Final = 100_000
"""Most names and values in params and in tags, each, at all depths: an empty list is one byte, 64 in memory."""
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
"""Field -> longest text in characters."""
MAX_ALERTS: Final = 1000
"""Most alerts of a message."""
MAX_ALERT_TITLE_CHARS: Final = 250
MAX_ALERT_TEXT_CHARS: Final = 10_000
MAX_SOURCE_CHARS: Final = 200

UNCOUNTED_BYTES: Final = 128 * KIB
"""A smaller body is decoded without counting its elements: it takes at most ten megabytes of memory."""
MAX_REPAIRED_ELEMENTS: Final = 3 * MAX_ITEMS
"""Most elements of a body with invalid UTF-8, which is decoded without types."""
