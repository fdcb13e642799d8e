"""Accepts the log lines of a run: samples them, and finds the log levels of printed ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, TypeAlias

from trainwire.ingest.lines.log_levels import levels_of
from trainwire.ingest.lines.printed_lines import PrintedLines
from trainwire.ingest.process.clock import monotonic_ns
from trainwire.schemas.wire.messages import LogType

if TYPE_CHECKING:
    from trainwire.ingest.lines.sampling import LineSampler

TakeLines: TypeAlias = Callable[[Sequence[str], LogType, int, Iterable[str | None]], None]


class LogLines:
    """Accepts lines from any thread, and passes those on that are to be logged."""

    def __init__(self, lines_per_s: int | None, pass_on: TakeLines, count_left_out: Callable[[int], None]) -> None:
        """Accept all lines, or a sample of those above `lines_per_s`.

        `pass_on` is called with lines, their log type, their time in nanoseconds since 1970, and the log level of
        each (or None). `count_left_out` is called with the number of lines that are not passed on.
        """
        self._pass_on = pass_on
        self._count_left_out = count_left_out
        self._sampler = None if lines_per_s is None else _new_sampler(lines_per_s)
        self.printed = PrintedLines()

    def take(self, texts: Sequence[str], log_type: LogType, ts: int, level: str | None = None) -> None:
        """Accept lines that all have the log level `level`."""
        self._pass_on(self._sampled(texts, log_type, ts), log_type, ts, repeat(level))

    def take_printed(self, texts: Sequence[str], log_type: LogType, ts: int) -> None:
        """Accept lines that a program has printed; their log levels are found in them."""
        texts = self._sampled(texts, log_type, ts)
        self.printed.add(texts)
        self._pass_on(texts, log_type, ts, levels_of(texts))

    def close(self) -> None:
        """Log the number of lines that were left out since the last notice."""
        for log_type, notice in (self._sampler.close() if self._sampler else {}).items():
            self._pass_on((notice,), log_type, time.time_ns(), ("WARNING",))

    def _sampled(self, texts: Sequence[str], log_type: LogType, ts: int) -> Sequence[str]:
        """Return those lines of `texts` that are to be logged.

        Log a notice if lines of an earlier second were left out.
        """
        if self._sampler is None:
            return texts
        sample = self._sampler.sample(texts, log_type, monotonic_ns())
        if sample.notice is not None:
            self._pass_on((sample.notice,), log_type, ts, ("WARNING",))
        if sample.left_out:
            self._count_left_out(sample.left_out)
        return sample.lines


def _new_sampler(lines_per_s: int) -> LineSampler:
    from trainwire.ingest.lines.sampling import LineSampler  # noqa: PLC0415 - of no use without a limit

    return LineSampler(lines_per_s)
