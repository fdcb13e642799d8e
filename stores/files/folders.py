"""A folder in an object store, by its manifest: read with suspicion, for whoever can upload can write one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from trainwire.schemas.checkpoint_keys import MANIFEST, ManifestFile, S3Uri, decode_manifest

MAX_FILES: Final = 10_000
MAX_MANIFEST_BYTES: Final = 8 * 1024 * 1024
MAX_PATH_CHARS: Final = 1024
"""The longest key of S3, in bytes."""
_REFUSED_PARTS: Final = frozenset({"", ".", ".."})


class WrongManifest(ValueError):  # noqa: N818 - said as it stands
    """A manifest is not what was recorded, or names what no folder of ours holds."""


class Reader(Protocol):
    """What a manifest is read from."""

    def read(self, uri: S3Uri) -> Iterator[bytes]:
        """Yield the bytes of an object."""


def read_manifest(store: Reader, folder: S3Uri, sha256: str | None) -> list[ManifestFile]:
    """Return the files of a folder; every path lies below it.

    Raises `WrongManifest` where the manifest is not the one that was recorded (`sha256`, hex), cannot be read, or
    names a path that leads elsewhere; and what the store raises, `NoSuchObject` where there is no manifest.
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
    """Return where a file of a folder is."""
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
    """Tell whether a path stays in its folder: dots lead out of it, on Windows a drive or a backslash too."""
    if len(path) > MAX_PATH_CHARS or "\0" in path or "\\" in path or path[1:2] == ":":
        return False
    return not _REFUSED_PARTS & set(path.split("/"))
