"""Describes a checkpoint: its location, its size, and the key of its object in the bucket."""

from __future__ import annotations

import os
import re
import time
from pathlib import PurePath
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sanitize import path_text, plain_text
from trainwire.schemas.checkpoint_keys import ARTIFACT, MODEL, NEWEST_KINDS, new_upload_folder
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN, Checkpoint

_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
"""Matches a URI. Its scheme has at least two characters, because `C:` is a drive of Windows."""
_ONE_SLASH: Final = frozenset({"dbfs", "hdfs", "models", "runs", "viewfs", "webhdfs"})
"""Schemes whose URIs may have a single slash and no host: `dbfs:/mnt/x`, `runs:/<id>/model` (RFC 3986, 3)."""


def checkpoint_at(
    text: str,
    *,
    kind: str,
    epoch: int | None,
    step: int | None,
    metrics: dict[str, float] | None,
    is_best: bool | None,
) -> Checkpoint:
    """Return the description of a checkpoint at `text`, a result of `location`, with the current time.

    A local file has its size. If `is_best` is None, the kind `best` makes it True.
    """
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
    """Return a local path as an absolute path, and a URI unchanged; "" for None or an empty path.

    `s3:/bucket/x`, which `pathlib` makes of `s3://bucket/x`, is corrected. `file://` and `~` are resolved to
    local paths. Shell variables are not expanded, because Python does not expand them either when it saves a
    file.
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


def is_missing(text: str) -> bool:
    """Return whether `text`, a result of `location`, is a local path at which there certainly is nothing."""
    if is_uri(text) or not os.path.isabs(text):  # relative: the working folder was deleted
        return False
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # a folder without permission, a NUL in the path
        pass
    return False


def is_uri(text: str) -> bool:
    """Return whether `text`, a result of `location`, is a URI."""
    return not text.startswith("/") and _URI.fullmatch(text) is not None


def _text_of(path: object) -> str:
    """Return a path as text.

    `__fspath__` of a remote path is not called, because some libraries then download the file.
    """
    text = plain_text(path)
    is_remote = isinstance(path, os.PathLike) and not isinstance(path, PurePath) and "://" in text
    return text if is_remote else path_text(path)


def _absolute(path: str) -> str:
    """Return the absolute path; if the working folder was deleted, return `path` unchanged."""
    try:
        if path.startswith("~") and not os.path.lexists(path):
            path = os.path.expanduser(path)
        return os.path.abspath(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name of a user
        return path


def _size_bytes(path: str) -> int | None:
    """Return the size of a file; None for a folder, and for a file that does not exist."""
    try:
        return os.path.getsize(path) if os.path.isfile(path) else None
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None


MAX_NAME_CHARS: Final = 60
"""Limit of an artifact's name in a key: S3 keys have at most 1024 bytes, and a character may take twelve."""


class Slot(NamedTuple):
    """The fields by which a new checkpoint replaces older ones of the same source: those with an equal slot."""

    kind: str
    epoch: int | None
    step: int | None
    ending: str


def slot_of(checkpoint: Checkpoint, is_folder: bool) -> Slot:
    """Return the slot of a checkpoint.

    A newer checkpoint replaces an older one of the same slot: an upload of the older one that has not begun is
    cancelled, and workers delete its uploaded file (`trainwire.workers.checkpoints.surplus`, which uses the same
    slots). For the kinds `best`, `last` and `final`, the step is not part of the slot.
    """
    step = None if checkpoint.kind in NEWEST_KINDS else checkpoint.step
    return Slot(checkpoint.kind, checkpoint.epoch, step, _ending(checkpoint, is_folder))


def object_key(prefix: str, origin: Origin, checkpoint: Checkpoint, is_folder: bool) -> str:
    """Return a new key: `{prefix}/{job_id}/{attempt}/{upload}/{kind}[-{epoch}][-step{step}][-rank{rank}]{suffix}`.

    `upload` is new for each call, so that no object is overwritten. The key of a folder ends with a slash. If
    the attempt is not known, the unique name of the source takes its place.
    """
    attempt = f"source-{origin.source}" if origin.attempt == ATTEMPT_UNKNOWN else str(origin.attempt)
    counts = (("-", checkpoint.epoch), ("-step", checkpoint.step), ("-rank", origin.rank or None))
    name = _word(checkpoint.kind) + "".join(f"{word}{count}" for word, count in counts if count is not None)
    folders = (prefix, str(origin.job_id), attempt, new_upload_folder(checkpoint.ts))
    return "/".join(part for part in (*folders, name + _ending(checkpoint, is_folder)) if part)


def _ending(checkpoint: Checkpoint, is_folder: bool) -> str:
    return "/" if is_folder else quote(os.path.splitext(checkpoint.uri)[1], safe=".", errors="replace")


def _word(kind: str) -> str:
    """Return a checkpoint's kind, or the file name of an artifact or model, quoted for use in an object key."""
    if kind.startswith((ARTIFACT, MODEL)):
        kind = os.path.splitext(os.path.basename(kind.partition(":")[2]))[0][:MAX_NAME_CHARS]
    return quote(kind, safe="", errors="replace").replace(".", "%2E")
