"""Shows the progress of a long command on stderr: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from trainwire.cli.terminal import one_line, warn

EVERY_S: Final = 10.0
_REDRAW_S: Final = 0.1
_MOST_CHARS: Final = 60


class Progress:
    """Shows the progress of one command on stderr; nothing if `quiet` is True."""

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_quiet = quiet
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._shown_at = self._began_at = clock()
        self._title = ""
        self._first = 0

    def __enter__(self) -> Self:
        console = Console(file=sys.stderr)
        if console.is_terminal and not self._is_quiet:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20))
            self._bars = Bars(*columns, console=console, transient=True)
            self._bars.start()
            self._task = self._bars.add_task("looking for runs", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, title: str, done: int, share: Callable[[], float | None] | float | None = None) -> None:
        """Show the progress of the run `title`: `done` processed points, and their share of all its points.

        `share` is a number from 0 to 1, a function that returns it, or None if it is unknown. The rate and the
        remaining time are computed since the first call with this title.
        """
        now = self._clock()
        if title != self._title:
            self._title, self._first, self._began_at = title, done, now
        interval_s = EVERY_S if self._bars is None else _REDRAW_S
        if self._is_quiet or now - self._shown_at < interval_s:
            return
        self._shown_at = now
        part = share() if callable(share) else share
        text = progress_text(title, done, part, done - self._first, now - self._began_at)
        if self._bars is None:
            warn(text)
        else:
            total = None if part is None else 1.0
            self._bars.update(self._task, description=text, total=total, completed=part or 0.0)


def progress_text(title: str, done: int, share: float | None, recent: int, seconds: float) -> str:
    """Format title, points, percentage, rate and remaining time.

    `recent` points were processed in the last `seconds`. The remaining time is left out if `share` is None.
    """
    parts = [f"{done:,} points"]
    if share is not None:
        parts.append(f"{min(share, 1):.0%}")
    if seconds > 0 and recent > 0:
        parts.append(f"{recent / seconds:,.0f}/s")
        if share:
            parts.append(f"{_duration(seconds * (1 - min(share, 1)) / share)} left")
    return f"{one_line(title)[:_MOST_CHARS]}: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
