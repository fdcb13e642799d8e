"""One process's outbox and sender, from the first word to the receipt; started over in a forked child."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from trainwire.ingest.origin import Origin
from trainwire.ingest.process.clock import monotonic_ns
from trainwire.ingest.process.daemon_pool import message_of, start_daemon
from trainwire.ingest.process.forks import importing, renew_in_children
from trainwire.ingest.process.tracebacks import PrintedLines
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.batching import LogType, MetricItem
from trainwire.ingest.sending.buffer import Intake
from trainwire.ingest.sending.heartbeat import Heart
from trainwire.ingest.sending.log_levels import levels_of
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.sampling import LineSampler
from trainwire.ingest.sending.sender import Publisher
from trainwire.ingest.settings import TrainerSettings, server_of, shown_host
from trainwire.ingest.uploads.uploads import UploadChoice, Uploads
from trainwire.schemas.messages import Checkpoint, Completion

if TYPE_CHECKING:
    from pathlib import Path

    from trainwire.ingest.arguments import Wrong
    from trainwire.ingest.spool.spool import Spool

logger = logging.getLogger("trainwire.ingest")

SOURCE_BYTES: Final = 12
"""Random bytes of a source's name, which nobody else can guess: who knows it can write under it."""
LEFTOVERS_AFTER_S: Final = 5.0
LEFTOVERS_TIMEOUT_S: Final = 600.0
"""How long one source's leftovers may take before the next one's turn."""
LEFTOVERS_THREAD: Final = "trainwire-leftovers"

RELIEF_BYTES: Final = 16 * 1024 * 1024
"""What may wait to be written to the disk before those who print wait for it."""

CHILD_FLUSH_S: Final = 2.0
"""How long a forked child that ends may wait for what it said itself."""


class Session:
    """Takes what a run says and sees to it that it is sent."""

    def __init__(
        self,
        job_id: int,
        attempt: int,
        rank: int | None,
        settings: TrainerSettings,
        note_checkpoint: Callable[[Checkpoint], None],
        *,
        joined_run_of_ns: int | None = None,
    ) -> None:
        """Begin; with `joined_run_of_ns`, as a part of a run that another process began at that time."""
        self._job_id = job_id
        self._attempt = attempt
        self._rank = rank
        self._settings = settings
        self._note_checkpoint = note_checkpoint
        self._since_ns = joined_run_of_ns or time.time_ns()
        """Stated by each source of this run, those of forked children too: they belong to the same attempt."""
        self._maker_pid = os.getpid() if joined_run_of_ns is None else None
        self._begin()
        if settings.strict:
            self._check_start()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Begin as a new source with an empty outbox; what the parent reported, the parent sends."""
        self.outbox.forget()
        self._begin()

    def _begin(self) -> None:
        source = f"{self._rank or 0}-{os.urandom(SOURCE_BYTES).hex()}"
        wake = threading.Event()
        spool = self._settings.spool
        self.intake = Intake(self._settings.buffer_bytes, wake, must_wait=spool.when_full == "block")
        origin = Origin(self._job_id, self._attempt, source, self._rank, self._since_ns)
        opener = None if spool.folder is None else partial(self._open_spool, spool.folder, origin)
        self.outbox = Outbox(origin, self.intake, opener, spool.when_full)
        self._uploads = Uploads(
            self._settings, self.outbox.origin, self._publish_checkpoint, can_upload=self.is_makers
        )
        outbox = self.outbox
        self._heart = Heart(
            origin,
            self._settings.vitals,
            lambda: outbox.words + self._outputs,
            backlog=outbox.backlog,
            may_claim=self.is_makers,
        )
        timing = self._settings.timing
        if self._settings.strict:
            timing = replace(timing, settle_s=math.inf)  # the end waits for the acks, up to its deadline
        self._publisher = Publisher(outbox, self._settings.streams, timing, wake, self._heart)
        rate = self._settings.log_lines_per_s
        self._sampler = None if rate is None else LineSampler(rate)
        self._starting = threading.Lock()
        self._finishing = threading.RLock()  # re-entrant: a signal handler may call finish within finish
        self._finished = threading.Event()
        self._receipt: Receipt | None = None
        self._warned_of: set[str] = set()
        self._outputs = 0
        self.printed = PrintedLines()

    def take_lines(self, texts: Sequence[str], log_type: LogType, ts: int, level: str | None = None) -> None:
        """Take log lines of one level."""
        if self._sampler is not None:
            texts = self._sampled(self._sampler, texts, log_type, ts)
        self._take_lines(texts, log_type, ts, (level,) * len(texts))

    def take_printed(self, texts: Sequence[str], log_type: LogType, ts: int) -> None:
        """Take lines as a program printed them, with the levels that they name themselves."""
        if self._sampler is not None:
            texts = self._sampled(self._sampler, texts, log_type, ts)
        self.printed.add(texts)
        self._take_lines(texts, log_type, ts, levels_of(texts))

    def note_output(self) -> None:
        """Count output, be it only a progress bar that is redrawn, as a sign of life."""
        self._outputs += 1

    def relieve(self) -> None:
        """Wait for the disk where more is printed than it takes; for one that hangs, only for seconds."""
        if self.intake.waiting_bytes > RELIEF_BYTES:
            self._publisher.relieve(lambda: self.intake.waiting_bytes <= RELIEF_BYTES)

    def take_metric(self, item: MetricItem) -> None:
        """Take a point, or progress and what the run is called."""
        if not self._publisher.is_started:
            self._start()
        if not self.intake.add_metric(item):
            self._warn_of_loss()

    def take_checkpoint(self, checkpoint: Checkpoint, choice: UploadChoice | None) -> None:
        """Take a checkpoint; where its file is to be uploaded, it is published when that is done."""
        self._uploads.take(checkpoint, choice)

    def refuse(self, wrong: Wrong) -> None:
        """Count an argument that is left out, and warn once of each that is wrong."""
        if wrong.is_dropped:
            self.intake.count_dropped("values")
        self.warn_once(wrong.name, wrong)

    def warn_once(self, what: str, text: object) -> None:
        """Log a warning, the first of those about `what` only."""
        if what not in self._warned_of:
            self._warned_of.add(what)
            logger.warning("job %s: %s", self._job_id, text)

    def finish_uploads(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` until all checkpoints are uploaded; what is not by then never is."""
        self.intake.stop_waiting()
        self._uploads.finish(timeout_s)

    def finish(self, completion: Callable[[], Completion], timeout_s: float) -> Receipt:
        """Say the completion, once, and wait up to `timeout_s`; a forked child says its own end, if it spoke."""
        with self._finishing:
            if self._receipt is None:
                self._receipt = Receipt()
                self._finished.set()
                self.intake.stop_waiting()
                for log_type, notice in (self._sampler.close() if self._sampler else {}).items():
                    self._take_lines((notice,), log_type, time.time_ns(), ("WARNING",))
                self.intake.close(completion() if self.is_makers else self._childs_end())
                if self._publisher.is_started or not self.intake.is_empty:
                    self._publisher.finish(timeout_s, may_leave=not self._settings.strict)
                    self.outbox.open_spool()
                self._receipt = self.outbox.receipt()
                self._tell_unsent(self._receipt)
                self.outbox.close()
            return self._receipt

    @property
    def is_makers(self) -> bool:
        """Tell whether this is the process that made the run, not a forked child nor one that has joined."""
        return os.getpid() == self._maker_pid

    def _childs_end(self) -> Completion | None:
        if not self._publisher.is_started:
            return None
        return Completion(ts=time.time_ns(), status="ended", rank=self._rank)

    def _check_start(self) -> None:
        from trainwire.ingest.sending.redis_connection import StreamLink  # noqa: PLC0415 - redis costs the start of those that are not strict
        from trainwire.ingest.strict import check_start  # noqa: PLC0415

        origin, url = self.outbox.origin, self._settings.streams
        check_start(StreamLink(url, origin.job_id, origin.source), self._heart, url)

    def _take_lines(self, texts: Sequence[str], log_type: LogType, ts: int, levels: Sequence[str | None]) -> None:
        if not self._publisher.is_started:
            self._start()
        if not self.intake.add_lines(texts, log_type, ts, levels):
            self._warn_of_loss()

    def _sampled(self, sampler: LineSampler, texts: Sequence[str], log_type: LogType, ts: int) -> Sequence[str]:
        """Return which lines to take, after saying how many of an earlier second were not."""
        sample = sampler.sample(texts, log_type, monotonic_ns())
        if sample.notice is not None:
            self._take_lines((sample.notice,), log_type, ts, ("WARNING",))
        if sample.left_out:
            self.intake.count_dropped("logs", sample.left_out)
        return sample.lines

    def _publish_checkpoint(self, checkpoint: Checkpoint) -> None:
        if not self._publisher.is_started:
            self._start()
        self._note_checkpoint(checkpoint)
        if not self.intake.add_checkpoint(checkpoint):
            self._warn_of_loss()

    def _start(self) -> None:
        with self._starting:
            if self._publisher.is_started:
                return
            if not self._publisher.start():
                return
        if self.is_makers and self._settings.spool.folder is not None:
            with suppress(RuntimeError):  # the system refuses a thread: the next run sends them
                start_daemon(partial(self._send_leftovers, self._settings.spool.folder), LEFTOVERS_THREAD)

    def _warn_of_loss(self) -> None:
        if self.intake.is_closed:
            self.warn_once("finished", "the run is finished: what is said after it is left out")
        else:
            size_bytes = self._settings.buffer_bytes
            self.warn_once(
                "full", f"the buffer of {size_bytes} bytes is full: log lines are left out, and counted"
            )

    def _tell_unsent(self, receipt: Receipt) -> None:
        unsent, spooled = sum(receipt.unsent.values()), sum(receipt.spooled.values())
        if not unsent:
            return
        host = shown_host(self._settings.streams)
        kept = (
            f"they are kept in {self._settings.spool.folder}: the next run that reaches this Redis sends them; "
            "`trainwire spool send --any-server` sends them to a running `trainwire up`"
            if spooled >= unsent
            else "what is not in a spool is lost"
        )
        logger.warning(
            "job %s: %s messages could not be sent to Redis at %s; %s", self._job_id, unsent, host, kept
        )

    def _open_spool(self, folder: Path, origin: Origin) -> Spool:
        with importing():  # in the sender's thread: the trainer's start does not wait for it
            from trainwire.ingest.spool.folder import About, SourceFolder  # noqa: PLC0415
            from trainwire.ingest.spool.spool import Spool  # noqa: PLC0415
        server = server_of(self._settings.streams)
        about = About(origin.job_id, origin.attempt, origin.source, origin.rank, server, origin.since_ns)
        made = SourceFolder.create(folder, about)
        try:
            return Spool(made, self._settings.spool.limit_bytes)
        except OSError:
            made.remove()
            raise

    def _send_leftovers(self, folder: Path) -> None:
        """Send what earlier processes on this machine have left for the same server; after an error, try again."""
        wait_s = LEFTOVERS_AFTER_S
        while not self._finished.wait(wait_s):
            try:
                self._send_leftovers_now(folder)
            except Exception as exc:
                text = f"messages that earlier runs have left in {folder} cannot be sent now ({message_of(exc)})"
                self.warn_once("leftovers", f"{text}: tried again")
                logger.debug("leftovers stay in the spool", exc_info=True)
                wait_s = min(2 * wait_s, LEFTOVERS_TIMEOUT_S)
            else:
                return

    def _send_leftovers_now(self, folder: Path) -> None:
        with importing():
            from trainwire.ingest.sending.recovery import send_leftovers  # noqa: PLC0415
        url, timing = self._settings.streams, self._settings.timing
        for leftover in send_leftovers(folder, url, timing, LEFTOVERS_TIMEOUT_S, stop=self._finished):
            logger.info("job %s: %s", leftover.about.job_id, leftover.receipt)
