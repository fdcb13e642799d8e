"""The thread that sends the messages of an outbox until they are acknowledged."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import message_of, start_daemon
from trainwire.ingest.sending.acks import AckReport, AckWatch
from trainwire.ingest.sending.buffer import MAX_BATCH_BYTES, SENDER_THREAD
from trainwire.ingest.sending.cutter import LATE_S, Cutter
from trainwire.ingest.sending.flush_pace import FlushPace
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.transports.connections import ServerConnection
from trainwire.ingest.servers.outage import Outage, Refused, Unavailable
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.keys import KINDS, Kind

if TYPE_CHECKING:
    from trainwire.ingest.sending.heartbeat import SourceHeartbeat
    from trainwire.ingest.sending.transports.transport import Answer
    from trainwire.ingest.servers.destinations import Destination

logger = logging.getLogger("trainwire.ingest")

ROUND_TRIP_BYTES: Final = 1024 * 1024
"""Limit of the messages of one kind in one exchange.

On a slow network, sending more would take longer than the socket timeout, also at each retry.
"""
LONE_ASK_FACTOR: Final = 10
"""Acknowledgements are read this many times less often while there are no messages to send in the same request."""
FINISHING_INTERVAL_S: Final = 0.02
FINISHING_BACKOFF_S: Final = 0.5
RESTART_S: Final = 1.0
"""Pause in seconds before the next attempt, after the system has refused to start a thread."""
FINISH_POLL_S: Final = 0.05


class Sender:
    """Sends the messages of an outbox; `start`, `relieve` and `finish` may be called from any thread.

    `heartbeat` is None if the messages are those of a process that has ended.
    """

    is_refused = False
    """Whether the server has refused this trainer, so that nothing more is sent."""

    def __init__(
        self,
        outbox: Outbox,
        destination: Destination,
        timing: Timing,
        wake: threading.Event,
        heartbeat: SourceHeartbeat | None = None,
        *,
        is_outage_logged_elsewhere: bool = False,
    ) -> None:
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._timing = timing
        self._pace = FlushPace(timing.flush_interval_s)
        self._flushed_at = 0.0
        self._wake = wake
        self._outage = Outage(timing, is_logged_elsewhere=is_outage_logged_elsewhere)
        self._connection = ServerConnection(destination, outbox.origin)
        self._watches = {kind: AckWatch(timing, monotonic_s()) for kind in KINDS}
        self._failed_at = 0.0
        self._backoff_s = 0.0
        self._acks_read_at = 0.0
        self._has_answered = False
        self._acked_at = 0.0
        self._is_finishing = False
        self._stopped = threading.Event()
        self._cutter = Cutter(outbox, self._stopped)
        self._all_sent = threading.Event()
        self._all_acked = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_at = 0.0
        self._warned_of: set[str] = set()

    @property
    def is_started(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    @property
    def is_reachable(self) -> bool:
        """Whether the last attempt to reach the server, if there was one, did not fail."""
        return self._outage.since is None and not self.is_refused

    def start(self) -> bool:
        """Start the thread and return True.

        Return False if the system refuses a thread: a call at least `RESTART_S` seconds later tries again.
        """
        if monotonic_s() < self._start_at:
            return False
        try:
            self._thread = start_daemon(self._run, SENDER_THREAD)
            if self._heartbeat is not None:
                start_daemon(self._cutter.cut_when_late, SENDER_THREAD)
        except RuntimeError as exc:
            if self._thread is None:
                self._start_at = monotonic_s() + RESTART_S
                self._warn("no thread to send with (%s): training goes on, it is sent once there is one", exc)
        return self._thread is not None

    def relieve(self, is_enough: Callable[[], bool]) -> None:
        """Wait until `is_enough` returns True, so that callers do not report faster than the disk can write."""
        self._cutter.relieve(is_enough)

    def finish(self, timeout_s: float, *, may_leave: bool = False) -> None:
        """Wait until everything is acknowledged, at most `timeout_s`, then stop the thread.

        Once everything is sent, the wait also ends after `settle_s` without a new acknowledgement. If
        `may_leave` is True and everything is in the spool, it ends once the server has been unreachable for
        `timeout_s`, for `away_s` if it has never answered, or at once if no server is configured or running.
        There is no wait for a server that has refused this trainer.
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
        while self._cutter.try_to_cut() and _left_s(deadline) > 0:
            pass  # the thread may wait for a socket: the receipt counts everything nevertheless
        while not self._all_sent.wait(min(FINISH_POLL_S, _left_s(deadline))):
            if not _left_s(deadline) or self.is_refused or (may_leave and self._is_hopeless(began, timeout_s)):
                break
        else:
            self._await_acks(deadline)
        self._stopped.set()
        self._cutter.wake()
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(min(1.0, _left_s(deadline)))

    def _is_hopeless(self, began: float, timeout_s: float) -> bool:
        """Return whether everything is in the spool and the server has been unreachable for too long."""
        since = self._outage.since
        if since is None or self._failed_at < began:  # one attempt at least
            return False
        limit_s = timeout_s if self._has_answered else self._timing.away_s
        if self._outage.is_without_server:
            limit_s = 0  # one that is started later sends it
        return monotonic_s() - since >= limit_s and self._outbox.is_all_spooled

    def _await_acks(self, deadline: float) -> None:
        self._acked_at = monotonic_s()
        while not self._all_acked.wait(min(FINISH_POLL_S, _left_s(deadline))):
            if monotonic_s() >= min(deadline, self._acked_at + self._timing.settle_s):
                return

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                # In an outage too: values are on the disk soon, whether or not they can be sent.
                self._wake.wait(self._at_least(max(self._pace.least_s, min(self._pace.interval_s, LATE_S))))
                self._wake.clear()
                self._work()
            self._withdraw_heartbeat()
        finally:
            self._end()

    def _work(self) -> None:
        try:
            self._send_all()
        except Unavailable as exc:
            self._note_failure(exc)
        except Exception as exc:
            # The thread must not end with messages in memory: it logs the error and tries again.
            logger.debug("unexpected in the sender", exc_info=True)
            self._note_failure(Unavailable(message_of(exc)))
        while self._backoff_left_s() > 0 and self._cutter.try_to_cut():
            pass  # encoded and compressed, values take less memory while they wait
        if self._is_finishing and self._outbox.is_all_sent:
            self._all_sent.set()
            if not self._outbox.awaited():
                self._all_acked.set()

    def _send_all(self) -> None:
        is_flush = False
        while self._backoff_left_s() <= 0 and not self._stopped.is_set():
            has_more = self._cutter.cut()
            is_flush = is_flush or self._is_time_to_flush()
            if not self._exchange(is_flush=is_flush) and not has_more:
                self._backoff_s = 0.0
                break

    def _warn(self, text: str, cause: object) -> None:
        """Log a warning, each text only once."""
        if text not in self._warned_of:
            self._warned_of.add(text)
            logger.warning(text, cause)

    def _note_failure(self, exc: Unavailable) -> None:
        self.is_refused = isinstance(exc, Refused)
        self._backoff_s = self._outage.note_failure(exc, self._connection.address)
        self._failed_at = monotonic_s()
        self._connection.close()

    def _backoff_left_s(self) -> float:
        if self.is_refused:
            return math.inf  # another token comes with another process
        longest_s = FINISHING_BACKOFF_S if self._is_finishing else self._timing.longest_backoff_s
        return self._failed_at + min(self._backoff_s, longest_s) - monotonic_s()

    def _withdraw_heartbeat(self) -> None:
        heartbeat, transport = self._heartbeat, self._connection.transport
        if heartbeat is None or not heartbeat.is_known or transport is None or self._backoff_left_s() > 0:
            return
        with suppress(Unavailable):  # the workers then notice the end by the missing heartbeats
            transport.withdraw_heartbeat(heartbeat)

    def _is_time_to_flush(self) -> bool:
        """Return whether to send messages now, or to collect more while the workers are behind."""
        if not self._pace.is_slow or self._is_finishing:
            return True
        is_due = monotonic_s() - self._flushed_at >= self._pace.interval_s
        return is_due or self._outbox.unsent_bytes >= MAX_BATCH_BYTES

    def _exchange(self, *, is_flush: bool) -> bool:
        """Send a heartbeat if it is due and, with `is_flush`, messages; return whether more may follow."""
        heartbeat = self._heartbeat if self._heartbeat is not None and self._heartbeat.is_due else None
        # Only workers that know entries of several messages publish how far behind they are.
        may_join = self._pace.is_slow
        batches = self._outbox.to_send(ROUND_TRIP_BYTES, may_join=may_join) if is_flush else {}
        kinds = self._outbox.sent_kinds() if self._is_time_for_acks(has_messages=bool(batches)) else []
        if not (batches or kinds or heartbeat):
            return False
        if batches:
            self._flushed_at = monotonic_s()
        answer = self._connection.open().exchange(batches, kinds, heartbeat)
        if batches or kinds:
            self._has_answered = True
        self._note_reports(answer)
        # First: the acknowledgements are older than the messages that were sent with the same request.
        stepped_back = self._release(answer.acks)
        for kind, seqs in answer.seqs.items():
            self._outbox.mark_sent(kind, seqs)
        has_resends = self._send_missing_again(answer.acks, stepped_back)
        if answer.must_hold:
            raise Unavailable("Redis is nearly full and asks trainers to hold back")
        if answer.refusal is not None:
            raise answer.refusal
        if batches or kinds or (self._outbox.is_all_sent and not self._outbox.awaited()):
            self._outage.note_success()
        return bool(batches) or has_resends

    def _note_reports(self, answer: Answer) -> None:
        """Record what an answer reports about the job and the workers, except acknowledgements."""
        if answer.behind_s is not None:
            self._pace = self._pace.after(answer.behind_s)
        if answer.is_job_deleted:
            self._outbox.note_job_deleted()
        if answer.is_unknown_resume:
            self._warn_of_unknown_resume()
        if answer.stop is not None and self._heartbeat is not None:
            self._heartbeat.stop.note(self._heartbeat.origin.job_id, answer.stop)

    def _warn_of_unknown_resume(self) -> None:
        origin = self._outbox.origin
        self._warn(
            "%s, and no earlier attempt of it is stored: check the number (`trainwire jobs` lists all), or leave "
            "out resume_from_step for a new job",
            f"job {origin.job_id} resumes from step {origin.resume_step}",
        )

    def _is_time_for_acks(self, *, has_messages: bool) -> bool:
        if not self._outbox.sent_kinds():
            return False
        interval_s = self._timing.ack_interval_s
        if not has_messages:
            interval_s = max(LONE_ASK_FACTOR * interval_s, self._pace.interval_s if self._pace.is_slow else 0.0)
        interval_s = self._at_least(interval_s)
        if not self._outbox.awaited():
            interval_s = max(interval_s, self._timing.idle_ask_interval_s)
        return monotonic_s() - self._acks_read_at >= interval_s

    def _at_least(self, interval_s: float) -> float:
        """Return `interval_s`, or less while the run ends, but not less than the transport's minimum interval."""
        transport = self._connection.transport
        least_s = 0.0 if transport is None else transport.least_interval_s
        return max(FINISHING_INTERVAL_S if self._is_finishing else interval_s, least_s)

    def _release(self, acks: Mapping[Kind, AckReport]) -> set[Kind]:
        """Delete acknowledged messages from the outbox.

        Return the kinds whose acknowledged number is lower than before.
        """
        if acks:
            self._acks_read_at = monotonic_s()
        stepped_back = set()
        for kind, report in acks.items():
            if report.acked is None:
                continue
            if self._outbox.step_back(kind, report.acked):
                stepped_back.add(kind)
            elif self._outbox.release(kind, report.acked, report.lost):
                self._acked_at = monotonic_s()
        return stepped_back

    def _send_missing_again(self, acks: Mapping[Kind, AckReport], stepped_back: Collection[Kind]) -> bool:
        """Queue the messages that Redis has lost to be sent again; return whether there are any."""
        awaited, now = self._outbox.awaited(), monotonic_s()
        has_resends = False
        for kind, report in acks.items():
            is_below = kind in stepped_back
            ranges = self._watches[kind].overdue(report, awaited.get(kind), now, stepped_back=is_below)
            self._outbox.send_again(kind, ranges)
            has_resends = has_resends or bool(ranges)
        return has_resends

    def _end(self) -> None:
        """Let `finish` return, because the thread has ended."""
        self._connection.close()
        self._all_sent.set()
        self._all_acked.set()


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - monotonic_s())
