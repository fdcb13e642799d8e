"""Decides which messages to send again, because acknowledgements do not arrive or report missing numbers."""

from __future__ import annotations

from typing import NamedTuple

from trainwire.ingest.sending.unacked import Range
from trainwire.ingest.settings.setting_groups import Timing


class AckReport(NamedTuple):
    """The acknowledgement of one source's messages of one kind, as the workers have written it to Redis.

    All messages up to number `acked` are committed or count as lost; `lost` is the number of the lost ones.
    `missing` are the ranges above `acked` that have not arrived, while later messages have. `acked` is None
    before the first acknowledgement, and after Redis has lost it.
    """

    acked: int | None = None
    missing: tuple[Range, ...] = ()
    lost: int = 0


def parse_report(acked: bytes | None, missing: bytes | None, lost: bytes | None = None) -> AckReport:
    """Parse the three fields of an acknowledgement in Redis; an absent or malformed one has its default value."""
    return AckReport(_whole(acked), tuple(_ranges(missing or b"")), _whole(lost) or 0)


class AckWatch:
    """Decides when to send unacknowledged messages of one kind again. Workers skip duplicates."""

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._report = AckReport()
        self._awaited = 0
        self._quiet_since = now
        self._probe_wait_s = timing.probe_after_s
        self._resend_due = now
        self._resend_wait_s = timing.resend_after_s

    def overdue(
        self, report: AckReport, awaited: int | None, now: float, *, stepped_back: bool = False
    ) -> tuple[Range, ...]:
        """Return the ranges of messages to send again now.

        `awaited` is the number of the newest message that is sent and not acknowledged. `stepped_back` is True
        if the acknowledged number is lower than before: the newest message is then sent at once, so that the
        workers report the gap before it.
        """
        if report != self._report:
            self._note_news(report, now)
        if awaited is None:
            return ()
        if awaited != self._awaited:  # a message just sent shows a gap before it: no probe needed
            self._awaited = awaited
            self._quiet_since = now
        if stepped_back:
            self._quiet_since = now - self._probe_wait_s
        if report.missing:
            return self._missing(report, now)
        return self._probe(awaited, now)

    def _note_news(self, report: AckReport, now: float) -> None:
        # While reports change, messages sent again are still arriving: wait until they do not change.
        if self._report.missing:
            self._resend_due = max(self._resend_due, now + self._timing.resend_after_s)
        self._report = report
        self._quiet_since = now
        self._probe_wait_s = self._timing.probe_after_s
        self._resend_wait_s = self._timing.resend_after_s

    def _missing(self, report: AckReport, now: float) -> tuple[Range, ...]:
        if now < self._resend_due:
            return ()
        self._resend_due = now + self._resend_wait_s
        self._resend_wait_s = self._longer(self._resend_wait_s)
        return report.missing

    def _probe(self, awaited: int, now: float) -> tuple[Range, ...]:
        """Return a range of only the newest message: when it arrives, the workers report the gap before it."""
        if now - self._quiet_since < self._probe_wait_s:
            return ()
        self._quiet_since = now
        self._probe_wait_s = self._longer(self._probe_wait_s)
        return ((awaited, awaited),)

    def _longer(self, wait_s: float) -> float:
        return min(2 * wait_s, self._timing.longest_resend_s)


def _ranges(text: bytes) -> list[Range]:
    ranges = []
    for part in text.split(b","):
        first, _, last = part.partition(b"-")
        bounds = _whole(first), _whole(last)
        if bounds[0] is not None and bounds[1] is not None:
            ranges.append((bounds[0], bounds[1]))
    return ranges


def _whole(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() and len(text) < 20 else None
