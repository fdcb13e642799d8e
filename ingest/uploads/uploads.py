"""Checkpoint files on their way to the object store: one after the other, on a thread of their own."""

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

from trainwire.ingest.origin import Origin
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import DaemonPool, start_daemon
from trainwire.ingest.process.forks import importing
from trainwire.ingest.process.log_filter import quiet_libraries
from trainwire.ingest.settings import TrainerSettings
from trainwire.ingest.uploads.checkpoint import is_uri
from trainwire.ingest.uploads.object_keys import Slot, object_key, slot_of
from trainwire.ingest.uploads.progress_bar import ProgressBar
from trainwire.ingest.uploads.retry import GivenUp, Patience
from trainwire.ingest.uploads.snapshots import NoSnapshot, Snapshot, Snapshots
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.messages import Checkpoint

if TYPE_CHECKING:
    from trainwire.ingest.uploads.object_store import Part
    from trainwire.ingest.uploads.transfer import Transfer

logger = logging.getLogger("trainwire.ingest")

UploadChoice: TypeAlias = Literal["auto", "none"]

PARTS_AT_ONCE: Final = 4
ABORT_S: Final = 1.0
"""How long the end waits for an upload that it gave up to be aborted in the store."""
_OVERTAKEN: Final = (
    "the run ended before it was uploaded: give finish() a longer timeout_s, or set TRAINWIRE_CHECKPOINT_FINISH_S"
)
_OVERTAKEN_AWAY: Final = "the object store was away when the run ended: upload the file by hand"


@dataclass
class _Waiting:
    """A checkpoint that is not published yet; without a snapshot there is nothing to upload."""

    checkpoint: Checkpoint
    snapshot: Snapshot | None = None
    uri: S3Uri | None = None
    slot: Slot | None = None


class Uploads:
    """Publishes checkpoints in the order in which they were said, each when its object is complete or given up.

    Nothing here raises or waits for the network, except `finish`, which waits for as long as it is told.
    """

    def __init__(
        self, settings: TrainerSettings, origin: Origin, publish: Callable[[Checkpoint], None], can_upload: bool
    ) -> None:
        self._settings = settings.checkpoints
        self._origin = origin
        self._publish = publish
        self._can_upload = can_upload
        self._patience = Patience(settings.timing, self._settings.retry_s)
        self._snapshots = Snapshots(self._settings.snapshot, self._settings.spool)
        self._changed = threading.Condition()  # re-entrant: a signal handler may save a checkpoint
        self._line: deque[_Waiting] = deque()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._transfer: Transfer | None = None
        self._warned_of: set[str] = set()

    @property
    def is_idle(self) -> bool:
        """Tell whether everything is published."""
        return not self._line

    def take(self, checkpoint: Checkpoint, choice: UploadChoice | None) -> None:
        """Take a checkpoint, with a snapshot of its bytes where it is to be uploaded."""
        bucket = self._settings.bucket
        is_wanted = (choice or self._settings.upload) == "auto" and not is_uri(checkpoint.uri)
        if bucket is None or not is_wanted or self._is_closed:
            waiting = _Waiting(checkpoint)
        else:
            waiting = self._prepared(checkpoint, bucket)
        with self._changed:
            if waiting.snapshot is None and not self._line:
                self._say(waiting.checkpoint)
                return
            self._supersede(waiting)
            self._line.append(waiting)
            self._changed.notify_all()
            self._start()

    def finish(self, timeout_s: float) -> None:
        """Wait for what is waiting, then publish the rest as not uploaded, and remove the snapshots."""
        try:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
                deadline = monotonic_s() + timeout_s  # `wait_for` has a clock that a test may freeze
                while not self.is_idle and (left_s := deadline - monotonic_s()) > 0:
                    self._changed.wait(left_s)
        finally:
            self._patience.stop()
            self._give_up_rest(_OVERTAKEN_AWAY if self._patience.is_tried else _OVERTAKEN)
            if self._thread is not None and self._thread.is_alive():
                self._thread.join(min(ABORT_S, timeout_s / 2))
            self._snapshots.remove()

    def _prepared(self, checkpoint: Checkpoint, bucket: str) -> _Waiting:
        """Take the snapshot, or note why there is none."""
        error = self._obstacle()
        if error is not None:
            return _Waiting(_with_error(checkpoint, error))
        try:
            snapshot = self._snapshots.take(Path(checkpoint.uri))
        except NoSnapshot as exc:
            return _Waiting(_with_error(checkpoint, str(exc)))
        key = object_key(self._settings.prefix, self._origin, checkpoint, snapshot.is_folder)
        return _Waiting(checkpoint, snapshot, S3Uri(bucket, key), slot_of(checkpoint, snapshot.is_folder))

    def _obstacle(self) -> str | None:
        if not self._can_upload:
            return "it was said by a forked process: only the process that made the run uploads"
        with suppress(OSError):  # no descriptor is left to look for it: the upload waits for one
            if importlib.util.find_spec("boto3") is None:
                return "boto3 is not installed: pip install 'trainwire[s3]'"
        return None

    def _supersede(self, newer: _Waiting) -> None:
        """Drop the uploads that wait in the same slot and have not begun."""
        for waiting in list(self._line)[1:]:
            if waiting.snapshot is not None and waiting.slot == newer.slot:
                waiting.snapshot.discard()
                waiting.snapshot = None
                waiting.checkpoint = _with_error(waiting.checkpoint, "a newer one came before it was uploaded")

    def _start(self) -> None:
        if self._thread is None:
            try:
                # All threads now: an interpreter that is ending, and waits for the last upload, starts none.
                pool: DaemonPool[Part] = DaemonPool(PARTS_AT_ONCE, "trainwire-part")
                thread = start_daemon(partial(self._run, pool), "trainwire-uploads")
            except RuntimeError as exc:
                self._give_up_rest(f"the system refused a thread to upload with ({exc})")
            else:
                self._thread = thread

    def _run(self, pool: DaemonPool[Part]) -> None:
        while (waiting := self._next()) is not None:
            outcome = self._outcome(waiting, pool)
            with self._changed:
                if self._line and self._line[0] is waiting:  # else `finish` has said it as not uploaded
                    self._line.popleft()
                    self._say(outcome)
                    self._changed.notify_all()
            if waiting.snapshot is not None:
                waiting.snapshot.discard()
        pool.close()

    def _next(self) -> _Waiting | None:
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._is_closed)
            return self._line[0] if self._line else None

    def _outcome(self, waiting: _Waiting, pool: DaemonPool[Part]) -> Checkpoint:
        """Upload one checkpoint and return what is to be said of it."""
        if waiting.snapshot is None or waiting.uri is None:
            return waiting.checkpoint
        checkpoint, snapshot, uri = waiting.checkpoint, waiting.snapshot, waiting.uri
        bar = ProgressBar(os.path.basename(checkpoint.uri), snapshot.size_bytes)
        try:
            found = self._patience.attempt(lambda: self._connected(pool).upload(snapshot, uri, bar.advance))
        except GivenUp as exc:
            return _with_error(checkpoint, str(exc))
        except Exception as exc:
            # Whatever it is, it is said with the checkpoint; the thread goes on with the next.
            logger.debug("unexpected while a checkpoint was uploaded", exc_info=True)
            self._transfer = None  # with the next one credentials are read anew
            return _with_error(checkpoint, str(exc) or type(exc).__name__)
        finally:
            bar.clear()
        return msgspec.structs.replace(checkpoint, uri=str(uri), **found._asdict())

    def _connected(self, pool: DaemonPool[Part]) -> Transfer:
        if self._transfer is None:
            with importing():  # boto3 costs a third of a second
                from trainwire.ingest.uploads.object_store import ObjectStore  # noqa: PLC0415
                from trainwire.ingest.uploads.transfer import Transfer  # noqa: PLC0415

                quiet_libraries()
                store = ObjectStore()
                quiet_libraries()
            self._transfer = Transfer(store, self._patience, pool)
        return self._transfer

    def _give_up_rest(self, error: str) -> None:
        """Say all that is waiting, what should have been uploaded with `error`."""
        with self._changed:
            rest, self._line = self._line, deque()
            for waiting in rest:
                is_lost = waiting.snapshot is not None
                self._say(_with_error(waiting.checkpoint, error) if is_lost else waiting.checkpoint)

    def _say(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint; each reason why one is not uploaded is also a warning, once."""
        error = checkpoint.upload_error
        if error is not None and error not in self._warned_of:
            self._warned_of.add(error)
            logger.warning("job %s: checkpoint %s is not uploaded: %s", self._origin.job_id, checkpoint.uri, error)
        self._publish(checkpoint)


def _with_error(checkpoint: Checkpoint, error: str) -> Checkpoint:
    return msgspec.structs.replace(checkpoint, upload_error=error)
