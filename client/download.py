"""Downloads a checkpoint file from a signed URL, and verifies its size and checksum."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
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
    target = target_of(recorded.uri, to)
    if os.path.lexists(target) and not force:
        raise ClientError(f"{target} exists already: choose another name with to=, or replace it with force=True")
    # In the same folder: a rename is atomic only within one file system.
    arriving = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        write_verified(
            _pieces(url), arriving, recorded.uri, size_bytes=recorded.size_bytes, sha256=recorded.sha256
        )
        arriving.replace(target)
    except HTTPException as exc:
        raise ClientError(f"{recorded.uri} cannot be downloaded: {exc!r}") from exc
    except OSError as exc:  # among them urllib's URLError
        raise ClientError(f"{recorded.uri} cannot be downloaded to {target}: {exc}") from exc
    finally:
        arriving.unlink(missing_ok=True)
    return target


def target_of(key: str, to: str | Path | None) -> Path:
    """Return the path to which the file or folder at `key` (a key or URI of the object store) is downloaded.

    It is `to`, or its own name in the folder `to`, or by default in the current folder.
    """
    name = PurePosixPath(key).name
    own = Path("checkpoint" if name in {"", ".."} else name)
    if to is None:
        return own
    chosen = Path(to)
    return chosen / own if chosen.is_dir() else chosen


def write_verified(
    pieces: Iterable[bytes], path: Path, uri: object, *, size_bytes: int | None, sha256: str | None
) -> None:
    """Write `pieces`, the content of the object at `uri`, to a new file at `path`.

    Raises `ClientError` if the size or SHA-256 is not the recorded one (None: not recorded); the caller then
    deletes the file.
    """
    arrived_bytes, digest = 0, hashlib.sha256()
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            arrived_bytes += len(piece)
    if sha256 is not None and digest.hexdigest() != sha256.lower():
        raise ClientError(
            f"{uri} is not what the trainer uploaded: its SHA-256 is {digest.hexdigest()}, recorded is {sha256}; "
            "the download was deleted"
        )
    if size_bytes is not None and arrived_bytes != size_bytes:
        raise ClientError(
            f"{uri} has {arrived_bytes:,} bytes, recorded are {size_bytes:,}; the download was deleted"
        )


def _pieces(url: str) -> Iterator[bytes]:
    with urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - of the gateway
        while piece := answer.read(READ_BYTES):
            yield piece
        if answer.length:  # of Content-Length; `read` with an amount does not raise by itself
            raise IncompleteRead(b"", answer.length)
