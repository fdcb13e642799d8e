"""The size limits of messages and their parts, for workers and trainers (docs/wire-format.md).

A part beyond its limit is rejected before it is built, so that an entry of a few bytes cannot take all memory.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_BODY_BYTES: Final = 32 * MIB
"""Size of a body after decompression."""
MAX_ITEMS: Final = 100_000
"""Number of lines or points of a message, and of values of one point."""
MAX_RESULTS: Final = 10_000
"""Number of values of `final_metrics`, `best_metrics`, and `metrics` of a checkpoint: each is in one row."""
MAX_VALUES: Final = 200_000
"""Number of values of all points of a message."""
MAX_FREE_BYTES: Final = MIB
"""Encoded size of params, and of tags."""
MAX_FREE_ELEMENTS: Final = 100_000
"""Number of names and values in params, and in tags, at all depths: an empty list takes 64 bytes in memory."""
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
"""Field -> length of its text, in characters."""

UNCOUNTED_BYTES: Final = 128 * KIB
"""Smaller bodies are decoded without counting elements first: they take ten megabytes at most."""
MAX_REPAIRED_ELEMENTS: Final = 3 * MAX_ITEMS
"""Number of elements of a body with invalid text, which is decoded without types."""
