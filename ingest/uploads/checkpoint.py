"""A checkpoint as it is reported: where it is, which kind, how large."""

from __future__ import annotations

import os
import re
import time
from pathlib import PurePath
from typing import Final
from urllib.parse import unquote

from trainwire.ingest.sanitize import path_text, plain_text
from trainwire.schemas.messages import Checkpoint

_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
"""A scheme has two characters at least: one alone is a drive of Windows."""
_ONE_SLASH: Final = frozenset({"dbfs", "hdfs", "models", "runs", "viewfs", "webhdfs"})
"""Schemes whose URIs may have no host, and then one slash: `dbfs:/mnt/x`, `runs:/<id>/model` (RFC 3986, 3)."""


def checkpoint_at(
    path: object,
    *,
    kind: str,
    epoch: int | None,
    step: int | None,
    metrics: dict[str, float] | None,
    is_best: bool | None,
) -> Checkpoint | None:
    """Describe the checkpoint at a local path or at a URI; None where `path` is empty."""
    text = location(path)
    if not text:
        return None
    return Checkpoint(
        ts=time.time_ns(),
        kind=kind,
        uri=text,
        epoch=epoch,
        step=step,
        size_bytes=None if is_uri(text) else _size_bytes(text),
        is_best=True if is_best is None and kind == "best" else is_best,
        metrics=metrics or None,
    )


def location(path: object) -> str:
    """Return a local path as an absolute one, a URI as it is.

    `pathlib` makes `s3:/bucket/x` of `s3://bucket/x`: it gets its slash back. `file://` and `~` lead to local
    paths; variables of a shell, which no function of Python that saves a file expands, stay.
    """
    text = "" if path is None else _text_of(path)
    found = _URI.fullmatch(text)
    if found is not None and not (len(found[2]) == 1 and os.path.lexists(f"{found[1]}:")):
        scheme, slashes, rest = found.groups()
        if scheme.lower() != "file":
            has_host = len(slashes) > 1 or (scheme.lower() in _ONE_SLASH and ":" not in rest.partition("/")[0])
            return text if has_host else f"{scheme}://{rest}"
        if len(slashes) != 2 or rest.startswith("localhost/"):
            return _absolute("/" + unquote(rest.removeprefix("localhost/")))
        return text
    return _absolute(text) if text else ""


def is_uri(text: str) -> bool:
    """Return whether `location` returned a URI."""
    return not text.startswith("/") and _URI.fullmatch(text) is not None


def _text_of(path: object) -> str:
    """Return a path as text; a path of another library may download its file where Python asks for a local one."""
    text = plain_text(path)
    is_remote = isinstance(path, os.PathLike) and not isinstance(path, PurePath) and "://" in text
    return text if is_remote else path_text(path)


def _absolute(path: str) -> str:
    """Return the absolute path, or the path as it is where the folder it starts from was deleted."""
    try:
        if path.startswith("~") and not os.path.lexists(path):
            path = os.path.expanduser(path)
        return os.path.abspath(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name of a user
        return path


def _size_bytes(path: str) -> int | None:
    """Return the size of a file; a folder has none, and a file that is not there yet none either."""
    try:
        return os.path.getsize(path) if os.path.isfile(path) else None
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
