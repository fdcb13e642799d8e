"""Uploads checkpoint files to the object store, one after the other, in a separate thread."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import DaemonPool, start_daemon
from trainwire.ingest.process.forks import importing
from trainwire.ingest.process.log_filter import quiet_libraries
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.uploads.checkpoint import Slot, is_uri, object_key, slot_of
from trainwire.ingest.uploads.progress_bar import ProgressBar
from trainwire.ingest.uploads.retry import UploadAbandoned, UploadRetry
from trainwire.ingest.uploads.snapshots import NoSnapshot, Snapshot, Snapshots, adopted
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.extras import install_hint
from trainwire.schemas.wire.messages import Checkpoint

if TYPE_CHECKING:
    from trainwire.ingest.uploads.object_store import UploadedPart
    from trainwire.ingest.uploads.transfer import Transfer

logger = logging.getLogger("trainwire.ingest")

UploadChoice: TypeAlias = Literal["auto", "none"]

PARTS_AT_ONCE: Final = 4
ABORT_S: Final = 1.0
"""Seconds for which the end of the run waits until the store has aborted an unfinished upload."""
_NOT_IN_TIME: Final = (
    "the run ended before it was uploaded: give finish() a longer timeout_s, or set TRAINWIRE_CHECKPOINT_FINISH_S"
)
_STORE_UNAVAILABLE: Final = "the object store was unavailable when the run ended: upload the file by hand"


@dataclass
class _Pending:
    """A checkpoint that is not reported yet. If `snapshot` is None, there is nothing to upload."""

    checkpoint: Checkpoint
    snapshot: Snapshot | None = None
    uri: S3Uri | None = None
    slot: Slot | None = None


class Uploads:
    """Reports checkpoints in the order of `take`, each after its upload has succeeded or was abandoned.

    No method raises an error. Only `finish` waits for the network, for at most `timeout_s` and `ABORT_S`.
    """

    def __init__(
        self, settings: TrainerSettings, origin: Origin, report: Callable[[Checkpoint], None], can_upload: bool
    ) -> None:
        self._settings = settings.checkpoints
        self._origin = origin
        self._report_now = report
        self._can_upload = can_upload
        self._retry = UploadRetry(settings.timing, self._settings.retry_s)
        self._snapshots = Snapshots(self._settings.snapshot, self._settings.spool)
        self._changed = threading.Condition()  # re-entrant: a signal handler may save a checkpoint
        self._queue: deque[_Pending] = deque()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._transfer: Transfer | None = None
        self._warned_of: set[str] = set()

    @property
    def is_idle(self) -> bool:
        """Whether every checkpoint is reported."""
        return not self._queue

    def take(self, checkpoint: Checkpoint, choice: UploadChoice | None, taken: Path | None = None) -> None:
        """Queue a checkpoint to be reported; first take a snapshot of its files if it is to be uploaded.

        `choice` None means the setting. A checkpoint without an upload is reported at once if none waits.

        `taken` is the folder of a snapshot that another process has already taken; it is deleted with the
        snapshot.
        """
        bucket = self._settings.bucket
        is_wanted = (choice or self._settings.upload) == "auto" and not is_uri(checkpoint.uri)
        if bucket is None or not is_wanted or self._is_closed:
            pending = _Pending(checkpoint)
        else:
            pending = self._prepared(checkpoint, bucket, taken)
        with self._changed:
            if pending.snapshot is None and not self._queue:
                self._report(pending.checkpoint)
                return
            self._supersede(pending)
            self._queue.append(pending)
            self._changed.notify_all()
            self._start()

    def finish(self, timeout_s: float) -> None:
        """Wait for the uploads, then report the remaining checkpoints as not uploaded and delete the snapshots."""
        try:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
                deadline = monotonic_s() + timeout_s  # `wait_for` has a clock that a test may freeze
                while not self.is_idle and (left_s := deadline - monotonic_s()) > 0:
                    self._changed.wait(left_s)
        finally:
            self._retry.stop()
            self._abandon_rest(_STORE_UNAVAILABLE if self._retry.is_failing else _NOT_IN_TIME)
            if self._thread is not None and self._thread.is_alive():
                self._thread.join(min(ABORT_S, timeout_s / 2))
            self._snapshots.remove()

    def _prepared(self, checkpoint: Checkpoint, bucket: str, taken: Path | None) -> _Pending:
        """Take a snapshot of `checkpoint` and return both.

        If this fails, the checkpoint has the reason as its upload error.
        """
        error = self._upload_error()
        if error is not None:
            return _Pending(_with_error(checkpoint, error))
        try:
            snapshot = self._snapshots.take(Path(checkpoint.uri)) if taken is None else adopted(taken)
        except NoSnapshot as exc:
            return _Pending(_with_error(checkpoint, str(exc)))
        key = object_key(self._settings.prefix, self._origin, checkpoint, snapshot.is_folder)
        return _Pending(checkpoint, snapshot, S3Uri(bucket, key), slot_of(checkpoint, snapshot.is_folder))

    def _upload_error(self) -> str | None:
        if not self._can_upload:
            return "it was reported by a forked process: only the process that created the run uploads"
        with suppress(OSError):  # no file descriptor is left to look for it: the upload waits for one
            if importlib.util.find_spec("boto3") is None:
                return install_hint("boto3", "s3")
        return None

    def _supersede(self, newer: _Pending) -> None:
        """Drop the waiting uploads of the same slot as `newer`; an upload that has begun goes on."""
        for pending in list(self._queue)[1:]:
            if pending.snapshot is not None and pending.slot == newer.slot:
                pending.snapshot.discard()
                pending.snapshot = None
                pending.checkpoint = _with_error(pending.checkpoint, "a newer one came before it was uploaded")

    def _start(self) -> None:
        if self._thread is None:
            try:
                # All threads now: an interpreter that is exiting, and waits for the last upload, starts none.
                pool: DaemonPool[UploadedPart] = DaemonPool(PARTS_AT_ONCE, "trainwire-part")
                thread = start_daemon(partial(self._run, pool), "trainwire-uploads")
            except RuntimeError as exc:
                self._abandon_rest(f"the system refused a thread to upload with ({exc})")
            else:
                self._thread = thread

    def _run(self, pool: DaemonPool[UploadedPart]) -> None:
        while (pending := self._next()) is not None:
            outcome = self._outcome(pending, pool)
            with self._changed:
                if self._queue and self._queue[0] is pending:  # otherwise `finish` has reported it as not uploaded
                    self._queue.popleft()
                    self._report(outcome)
                    self._changed.notify_all()
            if pending.snapshot is not None:
                pending.snapshot.discard()
        pool.close()

    def _next(self) -> _Pending | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            return self._queue[0] if self._queue else None

    def _outcome(self, pending: _Pending, pool: DaemonPool[UploadedPart]) -> Checkpoint:
        """Upload one checkpoint; return it with its new URI, or with the error if the upload failed."""
        if pending.snapshot is None or pending.uri is None:
            return pending.checkpoint
        checkpoint, snapshot, uri = pending.checkpoint, pending.snapshot, pending.uri
        bar = ProgressBar(os.path.basename(checkpoint.uri), snapshot.size_bytes)
        try:
            found = self._retry.attempt(lambda: self._connected(pool).upload(snapshot, uri, bar.advance))
        except UploadAbandoned as exc:
            return _with_error(checkpoint, str(exc))
        except Exception as exc:
            # Any error is reported with the checkpoint; the thread goes on with the next one.
            logger.debug("unexpected while a checkpoint was uploaded", exc_info=True)
            self._transfer = None  # the next upload reads the credentials again
            return _with_error(checkpoint, str(exc) or type(exc).__name__)
        finally:
            bar.clear()
        return msgspec.structs.replace(checkpoint, uri=str(uri), **found._asdict())

    def _connected(self, pool: DaemonPool[UploadedPart]) -> Transfer:
        if self._transfer is None:
            with importing():  # boto3 takes a third of a second to import
                from trainwire.ingest.uploads.object_store import ObjectStore  # noqa: PLC0415
                from trainwire.ingest.uploads.transfer import Transfer  # noqa: PLC0415

                quiet_libraries()
                store = ObjectStore()
                quiet_libraries()
            self._transfer = Transfer(store, self._retry, pool)
        return self._transfer

    def _abandon_rest(self, error: str) -> None:
        """Report all pending checkpoints; those that were to be uploaded get `error`."""
        with self._changed:
            rest, self._queue = self._queue, deque()
            for pending in rest:
                was_to_upload = pending.snapshot is not None
                self._report(_with_error(pending.checkpoint, error) if was_to_upload else pending.checkpoint)

    def _report(self, checkpoint: Checkpoint) -> None:
        """Report a checkpoint; log a warning if it was not uploaded, once for each reason."""
        error = checkpoint.upload_error
        if error is not None and error not in self._warned_of:
            self._warned_of.add(error)
            logger.warning("job %s: checkpoint %s is not uploaded: %s", self._origin.job_id, checkpoint.uri, error)
        self._report_now(checkpoint)


def _with_error(checkpoint: Checkpoint, error: str) -> Checkpoint:
    return msgspec.structs.replace(checkpoint, upload_error=error)
