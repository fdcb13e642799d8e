"""Reads and validates the manifest of a checkpoint folder. Any uploader can write one, so it is not trusted."""

from __future__ import annotations

import hashlib
from typing import Final

from trainwire.schemas.checkpoint_keys import MANIFEST, ManifestFile, S3Uri, decode_manifest
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.stores.files.s3 import S3Store

MAX_FILES: Final = 10_000
MAX_MANIFEST_BYTES: Final = 8 * 1024 * 1024
MAX_PATH_CHARS: Final = 1024
"""Longest path in a manifest; S3 limits keys to 1,024 bytes."""
_REFUSED_PARTS: Final = frozenset({"", ".", ".."})


class WrongManifest(ValueError):  # noqa: N818 - shown to users
    """The manifest has another hash than recorded, is too large, cannot be decoded, or lists invalid files."""


def read_manifest(store: S3Store, folder: S3Uri, sha256: str | None) -> list[ManifestFile]:
    """Return the files of a checkpoint folder, as its manifest lists them; all paths are checked.

    Raises `WrongManifest` if the manifest's SHA-256 is not `sha256` (hex; None: not compared), if it is larger
    than MAX_MANIFEST_BYTES or cannot be decoded, or if it lists more than MAX_FILES files, a path outside of the
    folder, itself, or a path twice. Errors of the object store, such as `NoSuchObject`, are raised too.
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
    except DECODE_ERRORS as exc:
        raise WrongManifest(f"{folder.manifest} cannot be read: {exc}") from exc
    _check(folder, files)
    return files


def address_of(folder: S3Uri, file: ManifestFile) -> S3Uri:
    """Return the URI of one file of a checkpoint folder in the object store."""
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
    """Return whether a relative path stays inside its folder, also on Windows (drive letters, backslashes)."""
    if len(path) > MAX_PATH_CHARS or "\0" in path or "\\" in path or path[1:2] == ":":
        return False
    return not _REFUSED_PARTS & set(path.split("/"))
