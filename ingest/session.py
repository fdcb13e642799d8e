"""One process's outbox and sender, from the first word to the receipt; started over in a forked child."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

from ingest.batches import LogType, MetricItem
from ingest.forks import renew_in_children
from ingest.intake import Intake
from ingest.outbox import Origin, Outbox
from ingest.publisher import Publisher
from ingest.receipt import Receipt
from ingest.settings import TrainerSettings, shown_host
from schemas.messages import Checkpoint, Completion

logger = logging.getLogger("trainwire.ingest")

CHILD_FLUSH_S: Final = 2.0
"""How long a forked child that ends may wait for what it said itself."""


class Session:
    """Takes what a run says and sees to it that it is sent."""

    def __init__(self, job_id: int, attempt: int, rank: int | None, settings: TrainerSettings) -> None:
        self._job_id = job_id
        self._attempt = attempt
        self._rank = rank
        self._settings = settings
        self._maker_pid = os.getpid()
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Begin as a new source with an empty outbox; what the parent said, the parent sends."""
        source = f"{self._rank or 0}-{os.urandom(4).hex()}"
        wake = threading.Event()
        self.intake = Intake(self._settings.buffer_bytes, wake)
        self.outbox = Outbox(Origin(self._job_id, self._attempt, source, self._rank), self.intake)
        self._publisher = Publisher(self.outbox, self._settings.redis_url, self._settings.timing, wake)
        self._starting = threading.Lock()
        self._finishing = threading.RLock()  # re-entrant: a signal handler may call finish within finish
        self._receipt: Receipt | None = None
        self._warned_of: set[str] = set()

    def take_lines(self, texts: Sequence[str], log_type: LogType, ts: int, level: str | None = None) -> None:
        """Take log lines."""
        if not self._publisher.is_started:
            self._start()
        if not self.intake.add_lines(texts, log_type, ts, level):
            self._warn_of_loss()

    def take_metric(self, item: MetricItem) -> None:
        """Take a point, or progress and what the run is called."""
        if not self._publisher.is_started:
            self._start()
        if not self.intake.add_metric(item):
            self._warn_of_loss()

    def take_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint."""
        if not self._publisher.is_started:
            self._start()
        if not self.intake.add_checkpoint(checkpoint):
            self._warn_of_loss()

    def refuse_value(self, what: str, value: object, wanted: str = "a number") -> None:
        """Count a value that is not what is `wanted`, and say once `what` it is."""
        self.intake.count_dropped("values")
        self._warn_once(what, f"{what} is {type(value).__name__}, not {wanted}: left out")

    def finish(self, completion: Callable[[], Completion], timeout_s: float) -> Receipt:
        """Say the completion, once and only in the process that made the run, and wait up to `timeout_s`."""
        with self._finishing:
            if self._receipt is None:
                self._receipt = Receipt()
                self.intake.close(completion() if self.is_makers else None)
                if self._publisher.is_started:
                    self._publisher.finish(timeout_s)
                self._receipt = self.outbox.receipt()
                self._tell_unsent(timeout_s)
            return self._receipt

    @property
    def is_makers(self) -> bool:
        """Tell whether this is the process that made the run, not a forked child."""
        return os.getpid() == self._maker_pid

    def _start(self) -> None:
        with self._starting:
            if not self._publisher.is_started:
                self._publisher.start()

    def _warn_of_loss(self) -> None:
        if self.intake.is_closed:
            self._warn_once("finished", "the run is finished: what is said after it is left out")
        else:
            size_bytes = self._settings.buffer_bytes
            self._warn_once(
                "full", f"the buffer of {size_bytes} bytes is full: log lines are left out, and counted"
            )

    def _warn_once(self, what: str, text: str) -> None:
        if what not in self._warned_of:
            self._warned_of.add(what)
            logger.warning("job %s: %s", self._job_id, text)

    def _tell_unsent(self, timeout_s: float) -> None:
        if not self.outbox.is_all_sent:
            logger.warning(
                "job %s: not everything could be sent to Redis at %s within %s s; what is left is lost",
                self._job_id,
                shown_host(self._settings.redis_url),
                timeout_s,
            )
