"""Sends the values of one process, from the first one to the receipt; a forked child begins a new session."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.lines.log_lines import LogLines
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.forks import renew_in_children
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.heartbeat import SourceHeartbeat, StopSignal
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.recovery_thread import send_for_children, start_recovery
from trainwire.ingest.sending.sender import Sender
from trainwire.ingest.sending.session_warnings import SessionWarnings
from trainwire.ingest.servers.destinations import destination_of
from trainwire.ingest.servers.outage import NoServer
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.spool.access import spool_opener
from trainwire.ingest.spool.stop_mark import StopMark
from trainwire.schemas.wire.messages import Checkpoint, Completion, LogType, Metrics, Point

if TYPE_CHECKING:
    from trainwire.ingest.arguments import WrongArgument
    from trainwire.ingest.uploads.uploads import UploadChoice, Uploads

SOURCE_BYTES: Final = 12
"""Number of random bytes in a source name: a process that guesses the name could send as this source."""
RELIEF_BYTES: Final = 16 * 1024 * 1024
"""Bytes of lines not yet written to the disk above which calls that log printed lines wait."""

DEFAULT_TIMEOUT_S: Final = 10.0
RESERVED_S: Final = 3.0
"""The part of a timeout, in seconds, that uploads leave for the messages."""
PROVENANCE_WAIT_S: Final = 1.0
"""Longest time, in seconds, for which the end of a run waits until its provenance is collected."""
CHILDREN_TIMEOUT_S: Final = 2.0
"""Longest time, in seconds, for which the end of a run sends messages that ended child processes have spooled."""
CHILD_FLUSH_S: Final = 2.0
"""Longest time, in seconds, for which the end of a forked child waits until its own messages are stored."""


class Session:
    """Accepts the values that a run reports in this process, and sends them."""

    def __init__(
        self,
        job_id: int,
        attempt: int,
        rank: int | None,
        settings: TrainerSettings,
        note_checkpoint: Callable[[Checkpoint], None],
        *,
        began_ns: int,
        is_joined: bool = False,
        resume_step: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        """Begin a session, which accepts values from now on.

        `began_ns` is the start of the run, in nanoseconds since 1970. It is that of another process if this run
        joins the run of that process (`is_joined`). If `resume_step` is set, the attempt is a new one, even if the
        previous one has not ended. `traceparent` identifies the span of the run. A strict session first claims the
        rank, and raises `StrictError` as `check_start` does.
        """
        self._job_id = job_id
        self._attempt = attempt
        self._rank = rank
        self._settings = settings
        self.destination = destination_of(settings)
        self._note_checkpoint = note_checkpoint
        self._since_ns = began_ns
        """The start of the attempt, which each source of this run reports, forked children included."""
        self._resume_step = resume_step
        self._traceparent = traceparent
        self._creator_pid = None if is_joined else os.getpid()
        self._begin()
        if settings.strict:
            self._check_start()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """In a forked child, begin a new source without messages; the parent sends its own messages."""
        self.outbox.forget()
        self._begin()

    def _begin(self) -> None:
        settings = self._settings
        self._stop_mark = StopMark(settings.spool.folder, self._job_id, self._since_ns)
        source = f"{self._rank or 0}-{os.urandom(SOURCE_BYTES).hex()}"
        wake = threading.Event()
        self.buffer = Buffer(settings.buffer_bytes, wake, must_wait=settings.spool.when_full == "block")
        origin = Origin(
            self._job_id,
            self._attempt,
            source,
            self._rank,
            self._since_ns,
            self._resume_step,
            self._traceparent,
        )
        open_spool = spool_opener(settings.spool, self.destination, origin)
        self.outbox = outbox = Outbox(origin, self.buffer, open_spool, settings.spool.when_full)
        self._uploads = self._new_uploads(origin)
        self._heartbeat = SourceHeartbeat(
            origin,
            settings.vitals,
            lambda: outbox.activity + self._outputs,
            unsent_counts=outbox.unsent_counts,
            may_claim=self.is_creator,
        )
        timing = settings.timing
        if settings.strict:
            timing = replace(timing, settle_s=math.inf)  # the end waits for acknowledgements up to its deadline
        self._sender = Sender(
            outbox,
            self.destination,
            timing,
            wake,
            self._heartbeat,
            is_outage_logged_elsewhere=settings.launcher_logs_outages,
        )
        self.lines = LogLines(
            settings.log_lines_per_s, self._take_lines, partial(self.buffer.count_dropped, "logs")
        )
        self._starting = threading.Lock()
        self._finishing = threading.RLock()  # re-entrant: a signal handler may call finish within finish
        self.finished = threading.Event()
        """Set when the run begins to finish."""
        if settings.is_disabled:
            self.buffer.close(None)
        self._receipt: Receipt | None = None
        self._warnings = SessionWarnings(self._job_id, settings)
        self._outputs = 0

    def _new_uploads(self, origin: Origin) -> Uploads | None:
        """Return the uploads of checkpoints; None if no bucket is configured."""
        if self._settings.checkpoints.bucket is None:
            return None
        from trainwire.ingest.uploads.uploads import Uploads  # noqa: PLC0415 - of no use without a bucket

        return Uploads(self._settings, origin, self._publish_checkpoint, can_upload=self.is_creator)

    def note_output(self) -> None:
        """Count output of the training as activity, so that the job is not shown as stalled.

        Output without a complete line counts too, such as a progress bar.
        """
        self._outputs += 1

    def relieve(self) -> None:
        """Wait while lines are printed faster than the disk writes them.

        If the disk hangs, wait ten seconds at most (`HUNG_DISK_S`).
        """
        if self.buffer.buffered_bytes > RELIEF_BYTES:
            self._sender.relieve(lambda: self.buffer.buffered_bytes <= RELIEF_BYTES)

    def take_metric(self, metric: Point | Metrics) -> None:
        """Queue a point, or a header (a `Metrics` without points) that describes the run or its progress."""
        if not self._sender.is_started:
            self._start()
        if not self.buffer.add_metric(metric):
            self._warnings.of_drop(self.buffer)

    def take_metric_late(self, metric: Point | Metrics) -> None:
        """Queue a `Metrics` that a background thread of trainwire made.

        Ignore it without a warning if the run is finished.
        """
        if not self.buffer.is_closed:
            self.take_metric(metric)

    def take_checkpoint(self, checkpoint: Checkpoint, choice: UploadChoice | None) -> None:
        """Queue a checkpoint to be sent; if its file is to be uploaded, queue it after the upload."""
        if self._uploads is None:
            self._publish_checkpoint(checkpoint)
        else:
            self._uploads.take(checkpoint, choice)

    def report_wrong(self, argument: WrongArgument) -> None:
        """Warn of an invalid argument, once for each name; if its value is left out, count it as dropped."""
        if argument.is_dropped:
            self.buffer.count_dropped("values")
        self.warn_once(argument.name, argument)

    def warn_once(self, subject: str, text: object) -> None:
        """Log a warning, unless one about the same subject was logged before."""
        self._warnings.once(subject, text)

    def finish(
        self,
        completion: Callable[[], Completion],
        timeout_s: float | None,
        provenance_sent: threading.Event | None = None,
    ) -> Receipt:
        """Finish the uploads, send the completion and return the receipt, within `timeout_s` or the defaults.

        A forked child that has sent anything sends a completion of its own, without a known status. Uploads
        that do not finish in time are abandoned. An exception such as ctrl-C ends the wait for uploads; the
        messages then have `RESERVED_S` seconds. The process that created the run also waits for the event
        `provenance_sent`, for `PROVENANCE_WAIT_S` or a quarter of the time left. A second call returns the same
        receipt.
        """
        left_s = RESERVED_S
        try:
            left_s = self._finish_uploads(timeout_s)
            if provenance_sent is not None and self.is_creator:
                provenance_sent.wait(min(PROVENANCE_WAIT_S, left_s / 4))
        finally:
            receipt = self._finish_messages(completion, left_s)
        return receipt

    def _finish_uploads(self, timeout_s: float | None) -> float:
        """Wait for uploads; return the number of seconds left for the messages."""
        self.buffer.stop_waiting()
        if timeout_s is None:
            if self._uploads is not None:
                self._uploads.finish(self._settings.checkpoints.finish_s)
            return DEFAULT_TIMEOUT_S
        started_s = monotonic_s()
        if self._uploads is not None:
            self._uploads.finish(max(timeout_s - RESERVED_S, timeout_s / 2))
        return round(max(0.0, timeout_s - (monotonic_s() - started_s)), 3)

    def _finish_messages(self, completion: Callable[[], Completion], timeout_s: float) -> Receipt:
        with self._finishing:
            if self._receipt is None:
                self._receipt = Receipt()
                self.finished.set()
                self.buffer.stop_waiting()
                self.lines.close()
                try:
                    if self.is_creator:
                        self._stop_mark.remove()
                        timeout_s -= self._send_for_children(min(CHILDREN_TIMEOUT_S, timeout_s / 4))
                finally:  # also if ctrl-C interrupts it
                    self.buffer.close(completion() if self.is_creator else self._childs_completion())
                if self._sender.is_started or not self.buffer.is_empty:
                    self._sender.finish(timeout_s, may_leave=not self._settings.strict)
                    self.outbox.open_spool()
                self._receipt = self.outbox.receipt()
                self._warnings.of_unsent(self._receipt, self.destination, is_refused=self._sender.is_refused)
                self.outbox.close()
            return self._receipt

    @property
    def stop(self) -> StopSignal:
        """The `StopSignal` of this process, which has the request to stop if one has arrived."""
        return self._heartbeat.stop

    def should_stop(self) -> bool:
        """Return whether a request to stop has arrived.

        A child process then leaves a file for the process that created the run, because that one may not read the
        request itself.
        A child process that has not reported anything begins to receive requests with the first call.
        """
        is_asked = self.stop.received.is_set()
        if not self.is_creator:
            if not self._sender.is_started:
                self.take_metric_late(Metrics(ts=time.time_ns()))
            if is_asked:
                self._stop_mark.leave()
        return is_asked

    def has_stopped_children(self) -> bool:
        """Return whether a child process of this run has read a request to stop."""
        return self.is_creator and self._stop_mark.is_there()

    @property
    def is_creator(self) -> bool:
        """Whether this process created the run.

        It is False in a forked child, and in a process that joined a run of its parent or unpickled one.
        """
        return os.getpid() == self._creator_pid

    def _childs_completion(self) -> Completion | None:
        if not self._sender.is_started:
            return None
        return Completion(ts=time.time_ns(), status="ended", rank=self._rank)

    def _check_start(self) -> None:
        from trainwire.ingest.sending.transports.connections import open_transport  # noqa: PLC0415 - slow to import
        from trainwire.ingest.strict import RedisAway, check_start  # noqa: PLC0415

        try:
            url = self.destination.locate()
        except NoServer as exc:
            raise RedisAway(f"{exc.__cause__}: start it, name a Redis in REDIS_URL, or leave out strict") from exc
        check_start(open_transport(url, self.destination.token, self.outbox.origin), self._heartbeat, url)

    def _take_lines(self, texts: Sequence[str], log_type: LogType, ts: int, levels: Iterable[str | None]) -> None:
        if not self._sender.is_started:
            self._start()
        if not self.buffer.add_lines(texts, log_type, ts, levels):
            self._warnings.of_drop(self.buffer)

    def _publish_checkpoint(self, checkpoint: Checkpoint) -> None:
        if not self._sender.is_started:
            self._start()
        self._note_checkpoint(checkpoint)
        if not self.buffer.add_checkpoint(checkpoint):
            self._warnings.of_drop(self.buffer)

    def _start(self) -> None:
        with self._starting:
            if self._settings.is_disabled or self._sender.is_started or not self._sender.start():
                return
        if self.is_creator and self._settings.spool.folder is not None:
            start_recovery(
                self._settings.spool.folder,
                self.destination,
                self._settings.timing,
                stop=self.finished,
                warn=partial(self.warn_once, "recovery"),
            )

    def _send_for_children(self, timeout_s: float) -> float:
        """Send the messages that ended child processes of this run left in the spool; return the seconds it took.

        They are sent before the completion of the run: otherwise the job would be shown as complete without them.
        """
        spool, began_s = self._settings.spool.folder, monotonic_s()
        if spool is not None and self._sender.is_reachable:
            send_for_children(spool, self.outbox.origin, self.destination, self._settings.timing, timeout_s)
        return monotonic_s() - began_s
