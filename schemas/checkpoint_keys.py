"""URIs of checkpoint files in an object store (`s3://bucket/key`), and manifests of checkpoint folders."""

from __future__ import annotations

import os
import re
import time
from typing import Final, NamedTuple, Self

import msgspec

SCHEME: Final = "s3://"
MANIFEST: Final = "manifest.json"
"""Name of the JSON file that lists the files of an uploaded folder.

The file is written last, so its existence proves that the upload of the folder is complete.
"""
MAX_FILES: Final = 10_000
"""Largest number of files in a checkpoint folder."""
NEWEST_KINDS: Final = ("best", "last", "final")
"""Checkpoint kinds in which an upload replaces an older one of the same epoch, whatever its step.

In other kinds, it replaces only an older one of the same epoch and step.
"""
ARTIFACT: Final = "artifact:"
"""Prefix of the `kind` of an uploaded file that is not a checkpoint.

Such a file never becomes the job's last checkpoint, and the retention of checkpoints does not count it.
"""
MODEL: Final = "model:"
"""Prefix of the `kind` of an uploaded model; the name of the model follows."""
UPLOAD_PATTERN: Final = "[^/]+/[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}/"
"""Regular expression, valid in Postgres and in Python, for the part of a key below the job's folder.

It matches the folder of the attempt and the folder of the upload (`new_upload_folder`).
"""
_LATEST_S: Final = 253_402_300_799
"""The last second of the year 9999, in seconds since 1970."""


class S3Uri(NamedTuple):
    """The URI of an object in an S3 bucket, or of a folder if the key ends with a slash."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Parse `s3://bucket/key`; raise `ValueError` for any other text."""
        bucket, _, key = uri.removeprefix(SCHEME).partition("/")
        if not uri.startswith(SCHEME) or not bucket or not key:
            raise ValueError(f"{uri!r} is not an address in an object store: use s3://bucket/key")
        return cls(bucket, key)

    @property
    def is_folder(self) -> bool:
        """Whether this URI names a folder: its key ends with a slash."""
        return self.key.endswith("/")

    @property
    def manifest(self) -> S3Uri:
        """The URI of this folder's manifest."""
        return S3Uri(self.bucket, self.key + MANIFEST)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"


def new_upload_folder(ts: int) -> str:
    """Return a folder name for a new upload: `ts` (nanoseconds since 1970) to the second, and 8 random hex digits.

    Names sort by `ts`. A time before 1970 or after 9999 counts as the nearest time in this range.
    """
    at = time.gmtime(min(max(ts // 10**9, 0), _LATEST_S))
    return f"{time.strftime('%Y%m%dT%H%M%SZ', at)}-{os.urandom(4).hex()}"


def upload_folder_of(job_folder: S3Uri, key: str) -> S3Uri | None:
    """Return the URI of the upload folder that contains `key`.

    Returns None if `key` is not in `job_folder`, or if the rest of it does not match UPLOAD_PATTERN.
    """
    if not key.startswith(job_folder.key):
        return None
    found = re.compile(UPLOAD_PATTERN).match(key, len(job_folder.key))
    return None if found is None else S3Uri(job_folder.bucket, key[: found.end()])


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a folder: `path` relative to the folder, with slashes, and the size and hash of its object."""

    path: str
    size_bytes: int
    sha256: str
    store_checksum: str | None = None


_decode_manifest = msgspec.json.Decoder(list[ManifestFile]).decode


def encode_manifest(files: list[ManifestFile]) -> bytes:
    """Return a folder's manifest as JSON."""
    return msgspec.json.encode(files)


def decode_manifest(raw: bytes) -> list[ManifestFile]:
    """Decode a manifest.

    Raises one of `DECODE_ERRORS` if it is not valid.
    """
    return _decode_manifest(raw)
