"""A checkpoint as it is reported: where it is, which kind, how large."""

from __future__ import annotations

import os
import time

from ingest.plain import count, path_text, plain_text, truth
from schemas.messages import Checkpoint


def checkpoint_at(
    path: object,
    *,
    kind: object,
    epoch: object,
    step: object,
    metrics: dict[str, float] | None,
    is_best: object,
) -> Checkpoint:
    """Describe the checkpoint at a local path (made absolute) or at a URI (left as it is)."""
    word = "" if kind is None else plain_text(kind)
    if not word:
        raise ValueError(f"kind={kind!r} is no kind of checkpoint: say 'best', 'last', 'epoch' or a word of yours")
    text = "" if path is None else path_text(path)
    if not text:
        raise ValueError(f"path={path!r} is no path: say a text or a pathlib.Path")
    is_uri = "://" in text
    best = truth(is_best)
    return Checkpoint(
        ts=time.time_ns(),
        kind=word,
        uri=text if is_uri else _absolute(text),
        epoch=count(epoch),
        step=count(step),
        size_bytes=None if is_uri else _size_bytes(text),
        is_best=True if best is None and word == "best" else best,
        metrics=metrics or None,
    )


def _absolute(path: str) -> str:
    """Return the absolute path, or the path as it is where the folder it starts from was deleted."""
    try:
        return os.path.abspath(path)
    except OSError:
        return path


def _size_bytes(path: str) -> int | None:
    """Return the size of a file; a folder has none, and a file that is not there yet none either."""
    try:
        return os.path.getsize(path) if os.path.isfile(path) else None
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
