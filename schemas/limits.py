"""How large a message and each of its parts may be (docs/wire-format.md): the one place for workers and trainers.

A part beyond its limit is refused before it is built, so that an entry of a few bytes cannot take all memory.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_BODY_BYTES: Final = 32 * MIB
"""Largest body, after decompression."""
MAX_ITEMS: Final = 100_000
"""Most lines of a message, points of a message, and values of one point."""
MAX_RESULTS: Final = 10_000
"""Most values of `final_metrics`, `best_metrics` and `metrics` of a checkpoint: they stand in one row."""
MAX_VALUES: Final = 200_000
"""Most values of all points of a message together."""
MAX_FREE_BYTES: Final = MIB
"""Largest params and tags, each, encoded."""
MAX_FREE_ELEMENTS: Final = 100_000
"""Most names and values in params and in tags, each, at all depths: an empty list is one byte and 64 in memory."""
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
"""Field -> longest text, in characters."""

UNCOUNTED_BYTES: Final = 128 * KIB
"""A smaller body is decoded at once: whatever it holds takes ten megabytes at most."""
MAX_REPAIRED_ELEMENTS: Final = 3 * MAX_ITEMS
"""Most elements of a body with broken text, which is decoded without types."""
