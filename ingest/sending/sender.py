"""The sender: one daemon thread per run that moves messages from the outbox to Redis until they are acked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from trainwire.ingest.outage import Outage, Unavailable
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import message_of, start_daemon
from trainwire.ingest.process.forks import importing
from trainwire.ingest.process.log_filter import quiet_libraries
from trainwire.ingest.sending.acks import AckWatch, Report
from trainwire.ingest.sending.buffer import SENDER_THREAD
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.settings import Timing, shown_host
from trainwire.schemas.keys import KINDS, Kind

if TYPE_CHECKING:
    from trainwire.ingest.sending.heartbeat import Heart
    from trainwire.ingest.sending.redis_connection import StreamLink

logger = logging.getLogger("trainwire.ingest")

ROUND_TRIP_BYTES: Final = 1024 * 1024
"""Of one kind: must pass within the socket timeout on a slow line, or it would be tried for ever."""
FINISHING_INTERVAL_S: Final = 0.02
FINISHING_BACKOFF_S: Final = 0.5
RESTART_S: Final = 1.0
"""How long it waits before it asks the system for a thread again."""
LATE_S: Final = 0.1
"""A thread of its own cuts what has waited for so long: a killed trainer loses the last 200 ms at most."""
HUNG_DISK_S: Final = 10.0
RELIEF_LOOK_S: Final = 0.05
LOOK_EVERY_S: Final = 0.05
"""How often `finish` looks whether it is worth while to wait."""


class Publisher:
    """Sends what the outbox holds; start, wake and finish may be called from any thread.

    Without a `heart` it sends no heartbeats: it sends what another process has left.
    """

    def __init__(
        self,
        outbox: Outbox,
        redis_url: str,
        timing: Timing,
        wake: threading.Event,
        heart: Heart | None = None,
    ) -> None:
        self._outbox = outbox
        self._heart = heart
        self._redis_url = redis_url
        self._timing = timing
        self._wake = wake
        self._outage = Outage(timing, shown_host(redis_url))
        self._link: StreamLink | None = None
        self._watches = {kind: AckWatch(timing, monotonic_s()) for kind in KINDS}
        self._failed_at = 0.0
        self._backoff_s = 0.0
        self._asked_at = 0.0
        self._cut_at = 0.0
        self._has_answered = False
        self._heard_at = 0.0
        self._is_finishing = False
        self._cuts = 0
        self._stuck_at = -1
        self._late = threading.Event()
        self._relieved = threading.Event()
        self._stopped = threading.Event()
        self._all_sent = threading.Event()
        self._all_acked = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_at = 0.0
        self._warned_of: set[str] = set()

    @property
    def is_started(self) -> bool:
        """Tell whether `start` was called."""
        return self._thread is not None

    def start(self) -> bool:
        """Start the thread and return True; where the system refuses one, messages wait for the next call."""
        if monotonic_s() < self._start_at:
            return False
        try:
            self._thread = start_daemon(self._run, SENDER_THREAD)
            if self._heart is not None:
                start_daemon(self._cut_meanwhile, SENDER_THREAD)
        except RuntimeError as exc:
            if self._thread is None:
                self._start_at = monotonic_s() + RESTART_S
                self._warn("no thread to send with (%s): training goes on, it is sent once there is one", exc)
        return self._thread is not None

    def relieve(self, is_enough: Callable[[], bool]) -> None:
        """Wait until enough of what is waiting is cut, because it comes faster than that.

        A disk that hangs is waited for once, for `HUNG_DISK_S`: then nobody waits until something is cut.
        """
        began, cuts = monotonic_s(), self._cuts
        while not is_enough() and self._stuck_at != self._cuts and not self._stopped.is_set():
            self._late.set()
            self._relieved.wait(RELIEF_LOOK_S)
            self._relieved.clear()
            if self._cuts != cuts:
                began, cuts = monotonic_s(), self._cuts
            elif monotonic_s() - began >= HUNG_DISK_S:
                self._stuck_at = cuts
                logger.warning(
                    "the disk has taken nothing for %.0f s: output is no longer held up for it", HUNG_DISK_S
                )

    def finish(self, timeout_s: float, *, may_leave: bool = False) -> None:
        """Wait until all is acked, or sent and of the workers no news for `settle_s`; then stop the thread.

        With `may_leave` it does not wait for a Redis that is away and was not heard of for `away_s`, or for as
        long as it would wait, while everything is on the disk: who comes next sends it.
        """
        began = monotonic_s()
        deadline = began + timeout_s
        self._is_finishing = True
        if self._thread is None:
            self._start_at = began
            self.start()
        if self._thread is None:
            self._end()
        self._wake.set()
        while self._cut() and _left_s(deadline) > 0:
            pass  # the thread may be stuck in a socket: the receipt counts everything all the same
        while not self._all_sent.wait(min(LOOK_EVERY_S, _left_s(deadline))):
            if not _left_s(deadline) or (may_leave and self._is_in_vain(began, timeout_s)):
                break
        else:
            self._await_acks(deadline)
        self._stopped.set()
        self._late.set()
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(min(1.0, _left_s(deadline)))

    def _is_in_vain(self, began: float, timeout_s: float) -> bool:
        since = self._outage.since
        if since is None or self._failed_at < began:  # one attempt at least
            return False
        patience_s = timeout_s if self._has_answered else self._timing.away_s
        return monotonic_s() - since >= patience_s and self._outbox.is_all_spooled

    def _await_acks(self, deadline: float) -> None:
        self._heard_at = monotonic_s()
        while not self._all_acked.wait(min(LOOK_EVERY_S, _left_s(deadline))):
            if monotonic_s() >= min(deadline, self._heard_at + self._timing.settle_s):
                return

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._wake.wait(self._pause_s())
                self._wake.clear()
                self._work()
            self._say_goodbye()
        finally:
            self._end()

    def _cut_meanwhile(self) -> None:
        """Cut while the thread that sends is held up by imports or a server that hangs: all is on disk soon."""
        while not self._stopped.is_set():
            is_asked = self._late.wait(LATE_S)
            self._late.clear()
            if is_asked or monotonic_s() - self._cut_at >= LATE_S:
                while self._cut() and not self._stopped.is_set():
                    pass

    def _work(self) -> None:
        try:
            self._send_all()
        except Unavailable as exc:
            self._note_failure(exc)
        except Exception as exc:
            # A sender that dies loses what it holds; this one says why and tries again.
            logger.debug("unexpected in the sender", exc_info=True)
            self._note_failure(Unavailable(message_of(exc)))
        while self._backoff_left_s() > 0 and self._cut():
            pass  # compressed, it takes less room while it waits
        if self._is_finishing:
            self._tell_progress()

    def _send_all(self) -> None:
        while self._may_try():
            has_more = self._outbox.cut()
            self._note_cut()
            self._cut_at = monotonic_s()
            self._beat()
            if not self._exchange() and not has_more:
                self._backoff_s = 0.0
                break

    def _cut(self) -> bool:
        """Cut ahead of sending; what goes wrong here is no reason to end, neither the thread nor the training."""
        try:
            return self._outbox.cut()
        except Exception as exc:
            self._warn("messages cannot be cut now (%s): tried again", message_of(exc))
            logger.debug("unexpected while messages were cut", exc_info=True)
            return False
        finally:
            self._note_cut()

    def _note_cut(self) -> None:
        self._cuts += 1
        self._relieved.set()

    def _warn(self, text: str, why: object) -> None:
        """Log a warning, each text once."""
        if text not in self._warned_of:
            self._warned_of.add(text)
            logger.warning(text, why)

    def _note_failure(self, exc: Unavailable) -> None:
        self._backoff_s = self._outage.note_failure(exc)
        self._failed_at = monotonic_s()
        self._disconnect()

    def _may_try(self) -> bool:
        return self._backoff_left_s() <= 0 and not self._stopped.is_set()

    def _backoff_left_s(self) -> float:
        longest_s = FINISHING_BACKOFF_S if self._is_finishing else self._timing.longest_backoff_s
        return self._failed_at + min(self._backoff_s, longest_s) - monotonic_s()

    def _beat(self) -> None:
        """Say that the process lives, when it is time to; also while messages are to be held back."""
        if self._heart is None or not self._heart.is_due:
            return
        self._connected().beat(self._heart)
        if self._outbox.is_all_sent and not self._outbox.awaited():
            self._outage.note_success()

    def _say_goodbye(self) -> None:
        if self._heart is None or not self._heart.is_known or self._link is None or self._backoff_left_s() > 0:
            return
        with suppress(Unavailable):  # then the workers find out by themselves
            self._link.say_goodbye(self._heart)

    def _exchange(self) -> bool:
        """Ask how things stand, then send; return whether there is more to send at once."""
        batches = self._outbox.to_send(ROUND_TRIP_BYTES)
        if not batches and not self._is_time_to_ask():
            return False
        link = self._connected()
        standing = link.ask(self._outbox.sent_kinds() if self._is_time_to_ask() else [])
        self._has_answered = True
        if standing.is_job_deleted:
            self._outbox.note_job_deleted()
        self._take_reports(standing.reports)
        if standing.must_hold:
            raise Unavailable("it is nearly full and asks trainers to hold back")
        batches = self._outbox.to_send(ROUND_TRIP_BYTES)
        if batches:
            sent = link.send(batches)
            for kind, seqs in sent.seqs.items():
                self._outbox.mark_sent(kind, seqs)
            if sent.refusal is not None:
                raise sent.refusal
        self._outage.note_success()
        return bool(batches)

    def _is_time_to_ask(self) -> bool:
        if not self._outbox.sent_kinds():
            return False
        interval_s = FINISHING_INTERVAL_S if self._is_finishing else self._timing.ack_interval_s
        if not self._outbox.awaited():
            interval_s = max(interval_s, self._timing.idle_ask_interval_s)
        return monotonic_s() - self._asked_at >= interval_s

    def _take_reports(self, reports: dict[Kind, Report]) -> None:
        if reports:
            self._asked_at = monotonic_s()
        went_back = set()
        for kind, report in reports.items():
            if report.acked is None:
                continue
            if self._outbox.step_back(kind, report.acked):
                went_back.add(kind)
            elif self._outbox.release(kind, report.acked, report.lost):
                self._heard_at = monotonic_s()
        awaited, now = self._outbox.awaited(), monotonic_s()
        for kind, report in reports.items():
            ranges = self._watches[kind].overdue(report, awaited.get(kind), now, went_back=kind in went_back)
            self._outbox.send_again(kind, ranges)

    def _connected(self) -> StreamLink:
        if self._link is None:
            with importing():  # here, not at the top: redis costs the trainer's start 100 ms
                from trainwire.ingest.sending.redis_connection import StreamLink  # noqa: PLC0415

                origin = self._outbox.origin
                quiet_libraries()
                self._link = StreamLink(self._redis_url, origin.job_id, origin.source)  # imports a little more
                quiet_libraries()
        return self._link

    def _pause_s(self) -> float:
        # In an outage too: what is said is on the disk a moment later, whether or not it can be sent.
        return FINISHING_INTERVAL_S if self._is_finishing else self._timing.flush_interval_s

    def _tell_progress(self) -> None:
        if self._outbox.is_all_sent:
            self._all_sent.set()
            if not self._outbox.awaited():
                self._all_acked.set()

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()

    def _end(self) -> None:
        """Let `finish` return at once: nobody sends any more."""
        self._disconnect()
        self._all_sent.set()
        self._all_acked.set()


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - monotonic_s())
