"""Downloads a checkpoint file from a signed URL, and verifies its size and checksum."""

from __future__ import annotations

import hashlib
import os
import secrets
from http.client import HTTPException, IncompleteRead
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.request import urlopen

from trainwire.client.errors import ClientError
from trainwire.client.records import CheckpointInfo

READ_BYTES: Final = 1024 * 1024
TIMEOUT_S: Final = 60.0


def fetch(url: str, recorded: CheckpointInfo, to: str | Path | None, *, force: bool) -> Path:
    """Download a checkpoint to the file or folder `to`; return the path of the file.

    By default, or in a folder, the file has its name in the object store; the default folder is the current one.
    Raises `ClientError` if the file exists and `force` is False, if the download fails, or if the size or SHA-256
    is not the recorded one; no partial file is left.
    """
    target = _target(recorded.uri, to)
    if os.path.lexists(target) and not force:
        raise ClientError(f"{target} exists already: choose another name with to=, or replace it with force=True")
    # In the same folder: a rename is atomic only within one file system.
    arriving = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        _check(recorded, *_read(url, arriving))
        arriving.replace(target)
    except HTTPException as exc:
        raise ClientError(f"{recorded.uri} cannot be downloaded: {exc!r}") from exc
    except OSError as exc:  # among them urllib's URLError
        raise ClientError(f"{recorded.uri} cannot be downloaded to {target}: {exc}") from exc
    finally:
        arriving.unlink(missing_ok=True)
    return target


def _target(uri: str, to: str | Path | None) -> Path:
    own = Path(PurePosixPath(uri).name or "checkpoint")
    if to is None:
        return own
    chosen = Path(to)
    return chosen / own if chosen.is_dir() else chosen


def _read(url: str, path: Path) -> tuple[int, str]:
    """Download `url` to the file `path`; return its size and SHA-256."""
    size_bytes, digest = 0, hashlib.sha256()
    with urlopen(url, timeout=TIMEOUT_S) as answer, path.open("xb") as file:  # noqa: S310 - of the gateway
        while piece := answer.read(READ_BYTES):
            file.write(piece)
            digest.update(piece)
            size_bytes += len(piece)
        if answer.length:  # of Content-Length; `read` with an amount does not raise by itself
            raise IncompleteRead(b"", answer.length)
    return size_bytes, digest.hexdigest()


def _check(recorded: CheckpointInfo, size_bytes: int, digest: str) -> None:
    if recorded.sha256 is not None and digest != recorded.sha256.lower():
        raise ClientError(
            f"{recorded.uri} is not what the trainer uploaded: its SHA-256 is {digest}, recorded is "
            f"{recorded.sha256}"
        )
    if recorded.size_bytes is not None and size_bytes != recorded.size_bytes:
        raise ClientError(f"{recorded.uri} has {size_bytes:,} bytes, recorded are {recorded.size_bytes:,}")
