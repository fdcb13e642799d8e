"""All that catches metrics of one command: hooks in its processes, its event files and its printed lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.event_files import EventFiles
from trainwire.ingest.hooks.listener import HookListener
from trainwire.ingest.hooks.printed import PrintedMetrics, checked_pattern
from trainwire.ingest.settings import WANDB_VARIABLE

if TYPE_CHECKING:
    from trainwire.ingest.run import Run

WandbMode = Literal["mirror", "replace", "off"]
WANDB_MODES: Final[tuple[WandbMode, ...]] = get_args(WandbMode)
TIMEOUT_S: Final = 5.0
"""How long, at the end, records that are not read yet may take."""


@dataclass(frozen=True)
class CatchOptions:
    """The sources of values that a launcher catches; `hooks=False` leaves the patterns and the named folders.

    Raises `ValueError` for a pattern or a mode that cannot be used.
    """

    hooks: bool = True
    patterns: tuple[str, ...] = ()
    tensorboard: tuple[Path, ...] = ()
    """Folders whose event files are followed; without any, it is the working folder."""
    wandb: str = "mirror"
    """W&B works unchanged and its values are taken; `replace` disables it; `off` takes nothing from it."""

    def __post_init__(self) -> None:
        if self.wandb not in WANDB_MODES:
            raise ValueError(f"--wandb {self.wandb!r} is no mode: write one of {', '.join(WANDB_MODES)}")
        if self.wandb == "replace" and not self.hooks:
            raise ValueError("--wandb replace needs the hooks: leave out --no-hooks, or write --wandb off")
        for pattern in self.patterns:
            checked_pattern(pattern)


class Hooks:
    """Catches metrics from the start of a command to its end."""

    def __init__(
        self,
        run: Run,
        run_of_rank: Callable[[int], Run],
        folder: Path | None,
        options: CatchOptions,
        warn: Callable[[str], None],
    ) -> None:
        """Begin, with a socket in `folder`; where the system refuses a part of it, warn and go on without."""
        self._caught = Caught(run, run_of_rank)
        self._printed = PrintedMetrics(self._caught, options.patterns)
        self._takes_printed = options.hooks or bool(options.patterns)
        self._listener: HookListener | None = None
        self._wandb = options.wandb
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
        variables = {WANDB_VARIABLE: self._wandb}
        if self._wandb == "replace":
            variables["WANDB_MODE"] = "disabled"  # also in processes without hooks
        return variables if self._listener is None else variables | self._listener.environment(environ)

    def take_printed(self, lines: Sequence[str], ts: int) -> None:
        """Take the metrics of lines that were printed at `ts` (nanoseconds since 1970)."""
        if self._takes_printed:
            self._printed.take(lines, ts)

    def close(self, exit_code: int) -> dict[str, float] | None:
        """Read the rest, log a summary, and return the final values that the training itself has set."""
        if self._listener is not None:
            self._listener.close(TIMEOUT_S)
        if self._event_files is not None:
            self._event_files.close(TIMEOUT_S)
        self._printed.close()
        self._caught.finish(exit_code)
        return self._caught.summary or None
