"""Uploads the files of one snapshot to the object store."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import BinaryIO, Final, NamedTuple, TypeAlias

from trainwire.ingest.process.daemon_pool import DaemonPool
from trainwire.ingest.uploads.object_store import ObjectStore, StoreRefused, UploadedPart, UploadForgotten
from trainwire.ingest.uploads.retry import StoreUnavailable, UploadAbandoned, UploadRetry
from trainwire.ingest.uploads.snapshots import Snapshot, SnapshotFile
from trainwire.schemas.checkpoint_keys import ManifestFile, S3Uri, encode_manifest

logger = logging.getLogger("trainwire.ingest")

PART_BYTES: Final = 16 * 1024 * 1024
MAX_PARTS: Final = 10_000
"""Maximum number of parts of a multipart upload (S3 User Guide, "multipart upload limits")."""
STARTS: Final = 3
"""Maximum number of times that the upload of a file is started; it starts again if the store has lost it."""
POLL_INTERVAL_S: Final = 0.2

Advance: TypeAlias = Callable[[int], None]
"""A function that is called with the number of bytes sent since its last call."""


class Uploaded(NamedTuple):
    """An uploaded checkpoint.

    `sha256` is in hex, for a folder that of its manifest. `store_checksum` is the one that the store returned.
    """

    size_bytes: int
    sha256: str
    store_checksum: str


class Transfer:
    """Uploads files one after the other, the parts of a file in parallel: each thread of `pool` sends one part."""

    def __init__(self, store: ObjectStore, retry: UploadRetry, pool: DaemonPool[UploadedPart]) -> None:
        self._store = store
        self._retry = retry
        self._pool = pool

    def upload(self, snapshot: Snapshot, uri: S3Uri, advance: Advance) -> Uploaded:
        """Upload the files of a snapshot to `uri`; for a folder, also upload a manifest that lists its files.

        Raises `UploadAbandoned` after the retries; `StoreRefused` and `OSError` are not retried.
        """
        if not snapshot.is_folder:
            return self._upload_file(snapshot.files[0], uri, advance)
        entries = []
        for file in snapshot.files:
            found = self._upload_file(file, S3Uri(uri.bucket, uri.key + file.name), advance)
            entries.append(ManifestFile(path=file.name, **found._asdict()))
        manifest = encode_manifest(entries)
        checksum = self._retry.attempt(partial(self._store.put, uri.manifest, manifest))
        return Uploaded(snapshot.size_bytes, hashlib.sha256(manifest).hexdigest(), checksum)

    def _upload_file(self, file: SnapshotFile, uri: S3Uri, advance: Advance) -> Uploaded:
        with file.path.open("rb") as source:
            if file.size_bytes <= PART_BYTES:
                return self._put_whole(file, source.read(), uri, advance)
            for _ in range(STARTS):
                source.seek(0)
                try:
                    return self._put_parts(file, source, uri, advance)
                except UploadForgotten as exc:
                    logger.info("the upload begins again: %s", exc)
        raise UploadAbandoned(f"the store forgot the upload of {uri} {STARTS} times")

    def _put_whole(self, file: SnapshotFile, data: bytes, uri: S3Uri, advance: Advance) -> Uploaded:
        _check_intact(file, len(data))
        checksum = self._retry.attempt(partial(self._store.put, uri, data))
        advance(len(data))
        return Uploaded(len(data), hashlib.sha256(data).hexdigest(), checksum)

    def _put_parts(self, file: SnapshotFile, source: BinaryIO, uri: S3Uri, advance: Advance) -> Uploaded:
        upload_id = self._retry.attempt(partial(self._store.begin, uri))
        try:
            parts, sha256 = self._send_parts(source, part_bytes(file.size_bytes), uri, upload_id, advance)
            _check_intact(file, source.tell())
            checksum = self._retry.attempt(partial(self._store.complete, uri, upload_id, parts))
        except BaseException:
            self._abort(uri, upload_id)
            raise
        return Uploaded(file.size_bytes, sha256, checksum)

    def _send_parts(
        self, source: BinaryIO, size_bytes: int, uri: S3Uri, upload_id: str, advance: Advance
    ) -> tuple[list[UploadedPart], str]:
        """Send all parts, each with its own retries; return them in order, and the SHA-256 of the file."""
        whole = hashlib.sha256()
        sent: list[UploadedPart] = []
        waiting: set[Future[UploadedPart]] = set()
        number = 0
        while data := source.read(size_bytes):
            number += 1
            send = partial(self._store.put_part, uri, upload_id, number, data)
            waiting.add(self._pool.submit(partial(self._retry.attempt, send)))
            whole.update(data)
            advance(len(data))
            del data, send
            while len(waiting) >= self._pool.size:
                waiting = self._await_some(waiting, sent)
        while waiting:
            waiting = self._await_some(waiting, sent)
        return sorted(sent), whole.hexdigest()

    def _await_some(
        self, waiting: set[Future[UploadedPart]], sent: list[UploadedPart]
    ) -> set[Future[UploadedPart]]:
        """Wait for a short time until a part is sent; add it to `sent`, and return the parts still waiting."""
        self._retry.check()
        done, waiting = wait(waiting, POLL_INTERVAL_S, FIRST_COMPLETED)
        sent.extend(future.result() for future in done)
        return waiting

    def _abort(self, uri: S3Uri, upload_id: str) -> None:
        try:
            self._store.abort(uri, upload_id)
        except (StoreUnavailable, StoreRefused, UploadForgotten) as exc:
            logger.debug("an upload could not be aborted: %s", exc)


def part_bytes(size_bytes: int) -> int:
    """Return the size of the parts of a file: `PART_BYTES`, or more if `MAX_PARTS` parts would not be enough."""
    return max(PART_BYTES, -(-size_bytes // MAX_PARTS))


def _check_intact(file: SnapshotFile, read_bytes: int) -> None:
    """Raise `UploadAbandoned` if the file has changed since its snapshot."""
    if read_bytes != file.size_bytes or not file.is_intact():
        raise UploadAbandoned(
            "the file was overwritten in place before it was uploaded: unset TRAINWIRE_CHECKPOINT_SNAPSHOT, "
            "or replace the file by os.replace()"
        )
