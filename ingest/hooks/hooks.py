"""Collects the metrics of one command from hooks in its processes, event files and printed lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.event_files import EventFiles
from trainwire.ingest.hooks.listener import HookListener
from trainwire.ingest.hooks.printed import PrintedMetrics, checked_pattern

if TYPE_CHECKING:
    from trainwire.ingest.run import Run

TIMEOUT_S: Final = 5.0
"""Time limit at the end for records that are not read yet."""


@dataclass(frozen=True)
class CatchOptions:
    """The sources from which a launcher collects metrics.

    Without `hooks` only printed lines that match the patterns and the named folders of event files are used.
    Raises `ValueError` for an invalid pattern.
    """

    hooks: bool = True
    patterns: tuple[str, ...] = ()
    tensorboard: tuple[Path, ...] = ()
    """Folders whose event files are followed; without any, it is the working folder."""

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            checked_pattern(pattern)


class Hooks:
    """Collects metrics from the start of a command to its end."""

    def __init__(
        self,
        run: Run,
        run_of_rank: Callable[[int], Run],
        folder: Path | None,
        options: CatchOptions,
        warn: Callable[[str], None],
    ) -> None:
        """Start the listener, on a socket in `folder`, and the readers; a part that cannot start is a warning."""
        self._caught = Caught(run, run_of_rank)
        self._printed = PrintedMetrics(self._caught, options.patterns)
        self._takes_printed = options.hooks or bool(options.patterns)
        self._listener: HookListener | None = None
        self._event_files: EventFiles | None = None
        folders = options.tensorboard or ((Path.cwd(),) if options.hooks else ())
        try:
            if options.hooks and folder is not None:
                self._listener = HookListener(folder, self._caught)
            if folders:
                self._event_files = EventFiles(folders, self._caught)
        except (OSError, RuntimeError) as exc:
            warn(f"metrics are not caught, or not all ({exc}); output and exit code are logged as always")

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that the command needs in addition to `environ`."""
        return {} if self._listener is None else self._listener.environment(environ)

    def take_printed(self, lines: Sequence[str], ts: int) -> None:
        """Take the metrics of lines that were printed at `ts` (nanoseconds since 1970)."""
        if self._takes_printed:
            self._printed.take(lines, ts)

    def close(self, exit_code: int) -> dict[str, float] | None:
        """Read the remaining values, log a summary, and return the final metrics that the training set itself."""
        if self._listener is not None:
            self._listener.close(TIMEOUT_S)
        if self._event_files is not None:
            self._event_files.close(TIMEOUT_S)
        self._printed.close()
        self._caught.finish(exit_code)
        return self._caught.summary or None
