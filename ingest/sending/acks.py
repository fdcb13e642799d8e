"""Decides what Redis must have lost, from what the workers report and for how long they are silent."""

from __future__ import annotations

from dataclasses import dataclass

from trainwire.ingest.sending.unacked import Range
from trainwire.ingest.settings import Timing


@dataclass(frozen=True)
class Report:
    """What the workers report of one kind: committed up to `acked`, `lost` of these; ranges that never arrived.

    Without an `acked` they have not reported, or Redis has lost it.
    """

    acked: int | None = None
    missing: tuple[Range, ...] = ()
    lost: int = 0


def parse_report(acked: bytes | None, missing: bytes | None, lost: bytes | None = None) -> Report:
    """Read the three hash fields; one that is absent or cannot be read counts as not reported."""
    return Report(_whole(acked), tuple(_ranges(missing or b"")), _whole(lost) or 0)


class AckWatch:
    """Watches one kind. What it asks to be sent twice is harmless: the drain knows every seq it has."""

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._report = Report()
        self._awaited = 0
        self._quiet_since = now
        self._probe_wait_s = timing.probe_after_s
        self._resend_due = now
        self._resend_wait_s = timing.resend_after_s

    def overdue(
        self, report: Report, awaited: int | None, now: float, *, went_back: bool = False
    ) -> tuple[Range, ...]:
        """Return the ranges to send again now; `awaited` is the newest seq that is sent and not acked.

        `went_back` tells that the report is below what was acked before: a probe shows at once what is missing.
        """
        if report != self._report:
            self._note_news(report, now)
        if awaited is None:
            return ()
        if awaited != self._awaited:  # what was just sent makes a gap visible by itself: no probe needed
            self._awaited = awaited
            self._quiet_since = now
        if went_back:
            self._quiet_since = now - self._probe_wait_s
        if report.missing:
            return self._missing(report, now)
        return self._probe(awaited, now)

    def _note_news(self, report: Report, now: float) -> None:
        # While the workers get on, what was sent again is on its way: wait until they are quiet.
        if self._report.missing:
            self._resend_due = max(self._resend_due, now + self._timing.resend_after_s)
        self._report = report
        self._quiet_since = now
        self._probe_wait_s = self._timing.probe_after_s
        self._resend_wait_s = self._timing.resend_after_s

    def _missing(self, report: Report, now: float) -> tuple[Range, ...]:
        if now < self._resend_due:
            return ()
        self._resend_due = now + self._resend_wait_s
        self._resend_wait_s = self._longer(self._resend_wait_s)
        return report.missing

    def _probe(self, awaited: int, now: float) -> tuple[Range, ...]:
        """Ask for the last message alone: if Redis lost the tail, the drain sees the gap before it."""
        if now - self._quiet_since < self._probe_wait_s:
            return ()
        self._quiet_since = now
        self._probe_wait_s = self._longer(self._probe_wait_s)
        return ((awaited, awaited),)

    def _longer(self, wait_s: float) -> float:
        return min(2 * wait_s, self._timing.patience_limit_s)


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
