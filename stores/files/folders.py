"""Reads and validates the manifest of a folder in an object store, because any uploader can write one."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from trainwire.schemas.checkpoint_keys import MANIFEST, ManifestFile, S3Uri, decode_manifest
from trainwire.stores.files.s3 import S3Store

MAX_FILES: Final = 10_000
MAX_MANIFEST_BYTES: Final = 8 * 1024 * 1024
MAX_PATH_CHARS: Final = 1024
"""The longest key of S3, in bytes."""
_REFUSED_PARTS: Final = frozenset({"", ".", ".."})


class WrongManifest(ValueError):  # noqa: N818 - shown to users
    """A manifest differs from the recorded one, cannot be read, or names an invalid path."""


def read_manifest(store: S3Store, folder: S3Uri, sha256: str | None) -> list[ManifestFile]:
    """Return the files of a folder; every path lies below it.

    Raises `WrongManifest` if the manifest's SHA-256 is not `sha256` (hex), or if it cannot be read or names a path
    outside of the folder; and the errors of the store, such as `NoSuchObject`.
    """
    raw = bytearray()
    for piece in store.read(folder.manifest):
        raw += piece
        if len(raw) > MAX_MANIFEST_BYTES:
            raise WrongManifest(f"{folder.manifest} is larger than {MAX_MANIFEST_BYTES:,} bytes")
    found = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise WrongManifest(f"{folder.manifest} has the SHA-256 {found}, the trainer recorded {sha256}")
    try:
        files = decode_manifest(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WrongManifest(f"{folder.manifest} cannot be read: {exc}") from exc
    _check(folder, files)
    return files


def address_of(folder: S3Uri, file: ManifestFile) -> S3Uri:
    """Return the address of a file in a folder."""
    return S3Uri(folder.bucket, folder.key + file.path)


def _check(folder: S3Uri, files: list[ManifestFile]) -> None:
    if len(files) > MAX_FILES:
        raise WrongManifest(f"{folder.manifest} lists {len(files):,} files, more than {MAX_FILES:,}")
    paths = [file.path for file in files]
    for path in paths:
        if not _lies_below(path):
            raise WrongManifest(
                f"{folder.manifest} lists {path[:MAX_PATH_CHARS]!r}, which does not lie in the folder"
            )
    if MANIFEST in paths or len(set(paths)) < len(paths):
        raise WrongManifest(f"{folder.manifest} lists itself, or a file twice")
    folders = {path[:index] for path in paths for index, char in enumerate(path) if char == "/"}
    if clash := folders & set(paths):
        raise WrongManifest(f"{folder.manifest} lists {min(clash)!r} as a file and as a folder")


def _lies_below(path: str) -> bool:
    """Return whether a path stays below its folder, on Windows too (drives, backslashes)."""
    if len(path) > MAX_PATH_CHARS or "\0" in path or "\\" in path or path[1:2] == ":":
        return False
    return not _REFUSED_PARTS & set(path.split("/"))
