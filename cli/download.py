"""Checkpoints from the object store onto this machine: whole and as recorded, or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.stack.errors import Problem
from trainwire.stores.files.folders import WrongManifest, address_of, read_manifest
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, S3Store, S3Unavailable
from trainwire.stores.postgres.checkpoints import CheckpointSource

Advance = Callable[[int], None]
"""Is told how many bytes more have arrived."""

_UNNAMED: Final = "checkpoint"


def target_of(source: CheckpointSource, chosen: Path | None) -> Path:
    """Return where a download goes: where the person says (into it if it is a folder), else its own name, here."""
    name = PurePosixPath(source.uri.key).name
    own = Path(_UNNAMED if name in {"", ".."} else name)
    if chosen is None:
        return own
    return chosen / own if chosen.is_dir() else chosen


def download(store: S3Store, source: CheckpointSource, target: Path, *, force: bool, advance: Advance) -> None:
    """Fetch a file or a folder and put it in place with one rename, once every byte is as it was recorded.

    Raises `Problem` where `target` is there and `force` is not set, where the store does not give it, and where
    it is not what the trainer recorded; `target` is then as it was before.
    """
    if os.path.lexists(target) and not force:
        raise Problem(f"{target} is there already: choose another name with --to, or replace it with --force")
    # In the same folder, for only there a rename is one step.
    arriving = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with _said(source.uri):
            if source.uri.is_folder:
                _fetch_folder(store, source, arriving, advance)
            else:
                _fetch(store, source, arriving, advance)
            _put_in_place(arriving, target)
    except OSError as exc:
        raise Problem(f"cannot write {target}: {exc.strerror or exc}") from exc
    finally:
        _remove(arriving)


def _fetch_folder(store: S3Store, source: CheckpointSource, folder: Path, advance: Advance) -> None:
    """Fetch what the manifest lists, which names nothing outside of the folder."""
    folder.mkdir()
    for shard in read_manifest(store, source.uri, source.sha256):
        path = folder / shard.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(
            store, CheckpointSource(address_of(source.uri, shard), shard.size_bytes, shard.sha256), path, advance
        )


def _fetch(store: S3Store, source: CheckpointSource, path: Path, advance: Advance) -> None:
    size_bytes, digest = 0, hashlib.sha256()
    with path.open("xb") as file:
        for piece in store.read(source.uri):
            file.write(piece)
            digest.update(piece)
            size_bytes += len(piece)
            advance(len(piece))
    if source.sha256 is not None and digest.hexdigest() != source.sha256.lower():
        raise Problem(
            f"{source.uri} is not what the trainer uploaded: its SHA-256 is {digest.hexdigest()}, recorded is "
            f"{source.sha256}; nothing was kept"
        )
    if source.size_bytes is not None and size_bytes != source.size_bytes:
        raise Problem(
            f"{source.uri} has {size_bytes:,} bytes, recorded are {source.size_bytes:,}; nothing was kept"
        )


def _put_in_place(arriving: Path, target: Path) -> None:
    if not target.is_dir() and not arriving.is_dir():
        arriving.replace(target)
        return
    # A folder takes the place of nothing that is there, so what is there has to step aside.
    former = target.with_name(f"{arriving.name}.former")
    if os.path.lexists(target):
        target.rename(former)
    arriving.rename(target)
    _remove(former)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _said(uri: S3Uri) -> Iterator[None]:
    """Say what the store answers as a person's problem."""
    try:
        yield
    except NoSuchObject as exc:
        raise Problem(f"{exc}: it was deleted, or never uploaded to this store") from exc
    except (NotAllowed, S3Unavailable, WrongManifest) as exc:
        raise Problem(f"cannot download {uri}: {exc}") from exc
