"""Where checkpoint files lie in an object store: `s3://bucket/key`, and a folder's manifest."""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import msgspec

SCHEME: Final = "s3://"
MANIFEST: Final = "manifest.json"
"""The last object of a folder to be written: where it is, the folder is complete."""
MAX_FILES: Final = 10_000
"""Most files of a folder."""


class S3Uri(NamedTuple):
    """An object, or all objects below a key that ends with a slash."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read `s3://bucket/key`; raise `ValueError` naming what is not one."""
        bucket, _, key = uri.removeprefix(SCHEME).partition("/")
        if not uri.startswith(SCHEME) or not bucket or not key:
            raise ValueError(f"{uri!r} is not an address in an object store: say s3://bucket/key")
        return cls(bucket, key)

    @property
    def is_folder(self) -> bool:
        """Tell whether this names a folder of objects."""
        return self.key.endswith("/")

    @property
    def manifest(self) -> S3Uri:
        """Return where the manifest of this folder is."""
        return S3Uri(self.bucket, self.key + MANIFEST)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a folder: its path below the folder, with slashes, and what its object must be."""

    path: str
    size_bytes: int
    sha256: str
    store_checksum: str | None = None


_decode_manifest = msgspec.json.Decoder(list[ManifestFile]).decode


def encode_manifest(files: list[ManifestFile]) -> bytes:
    """Return a folder's manifest as JSON."""
    return msgspec.json.encode(files)


def decode_manifest(raw: bytes) -> list[ManifestFile]:
    """Read a manifest; raise `ValueError` (msgspec's) naming the field that is wrong."""
    return _decode_manifest(raw)
