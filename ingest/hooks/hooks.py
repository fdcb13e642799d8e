"""Collects the metrics of one command from hooks in its processes, from event files and from printed lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.event_files import EventFiles
from trainwire.ingest.hooks.listener import HookListener
from trainwire.ingest.hooks.printed import PrintedMetrics, checked_pattern, names_metrics
from trainwire.ingest.identity.announcements import print_note
from trainwire.ingest.settings.environment import absolute_path
from trainwire.ingest.settings.variables import WANDB_VARIABLE

if TYPE_CHECKING:
    from trainwire.ingest.hooks.artifacts import ArtifactUploads
    from trainwire.ingest.run import Run
    from trainwire.ingest.settings.trainer_settings import TrainerSettings

WandbMode = Literal["mirror", "replace", "off"]
WANDB_MODES: Final[tuple[WandbMode, ...]] = get_args(WandbMode)
WITHOUT_WANDB: Final = {"WANDB_MODE": "disabled"}
TIMEOUT_S: Final = 5.0
"""Maximum time in seconds, after the command has ended, to read the hooks' values, and again for event files."""


def wandb_mode(chosen: str | None, *, hooks: bool) -> str:
    """Return how W&B is treated (see `CatchOptions.wandb`): `chosen`, else TRAINWIRE_WANDB, else `mirror`.

    An invalid value of the environment variable, or `replace` without hooks, is ignored with a warning. `chosen`
    is not checked.
    """
    if chosen is not None:
        return chosen
    named = os.environ.get(WANDB_VARIABLE) or "mirror"
    if named not in WANDB_MODES:
        print_note(f"{WANDB_VARIABLE}={named!r} is not one of {', '.join(WANDB_MODES)}; it is ignored")
    elif named == "replace" and not hooks:
        print_note(f"{WANDB_VARIABLE}={named!r} needs the hooks; it is ignored: leave out --no-hooks")
    else:
        return named
    return "mirror"


@dataclass(frozen=True)
class CatchOptions:
    """Options of `trainwire run` for collecting metrics; the constructor raises `ValueError` if they are invalid.

    With `hooks=False`, metrics come only from printed lines that match `patterns` and from event files in the
    folders `tensorboard`.
    """

    hooks: bool = True
    patterns: tuple[str, ...] = ()
    tensorboard: tuple[Path, ...] = ()
    """Folders in which event files are read; if empty, the working folder (only with `hooks`)."""
    upload_artifacts: bool = False
    """Whether files that the training logs with MLflow are uploaded to the bucket for checkpoints."""
    wandb: str = "mirror"
    """Mode for W&B:

    `mirror` copies its values and leaves it unchanged, `replace` also disables it, `off` copies nothing.
    """

    def __post_init__(self) -> None:
        if self.wandb not in WANDB_MODES:
            raise ValueError(f"--wandb {self.wandb!r} is no mode: write one of {', '.join(WANDB_MODES)}")
        if self.wandb == "replace" and not self.hooks:
            raise ValueError("--wandb replace needs the hooks: leave out --no-hooks, or write --wandb off")
        for pattern in self.patterns:
            checked_pattern(pattern)
        if self.patterns and not any(map(names_metrics, self.patterns)):
            raise ValueError(
                f"--metrics-regex {self.patterns[0]!r} finds a step or an epoch, and no metric: add a group for "
                "one, such as 'loss=(?P<loss>[0-9.]+)'"
            )
        if self.upload_artifacts and not self.hooks:
            raise ValueError("--upload-artifacts needs the hook into MLflow: leave out --no-hooks")


class Hooks:
    """Collects the metrics of a command, while it runs, from hooks, TensorBoard event files and printed lines."""

    def __init__(
        self,
        run: Run,
        run_of_rank: Callable[[int], Run],
        folder: Path | None,
        options: CatchOptions,
        warn: Callable[[str], None],
        *,
        settings: TrainerSettings | None = None,
    ) -> None:
        """Start to collect metrics: hooks in the command send values to a socket in `folder` (None: no hooks).

        If the socket or a thread cannot be created, call `warn` with the reason and continue without this source
        of metrics. `settings` are needed only for `options.upload_artifacts`.
        """
        wanted = settings if options.upload_artifacts else None
        self._artifacts = None if wanted is None else _artifact_uploads(run, wanted, folder, warn)
        self._caught = Caught(run, run_of_rank, self._artifacts)
        self._printed = PrintedMetrics(self._caught, options.patterns)
        self._takes_printed = options.hooks or bool(options.patterns)
        self._listener: HookListener | None = None
        self._wandb = options.wandb
        self._event_files: EventFiles | None = None
        self._warn = warn
        self._wanted_folders = options.tensorboard
        folders = options.tensorboard or ((absolute_path("."),) if options.hooks else ())
        try:
            if options.hooks and folder is not None:
                self._listener = HookListener(folder, self._caught)
            if folders:
                self._event_files = EventFiles(folders, self._caught)
        except (OSError, RuntimeError) as exc:
            warn(f"metrics are not caught, or not all ({exc}); output and exit code are logged as always")

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables to add to `environ`, the environment of the command."""
        variables = {WANDB_VARIABLE: self._wandb}
        if self._wandb == "replace":
            variables |= WITHOUT_WANDB  # also in processes without hooks
        if self._listener is not None:
            variables |= self._listener.environment(environ)
        if self._artifacts is not None:
            variables |= self._artifacts.environment()
        return variables

    def take_printed(self, lines: Sequence[str], ts: int) -> None:
        """Find metrics in lines printed at `ts` (nanoseconds since 1970), and add them to the job."""
        if self._takes_printed:
            self._printed.take(lines, ts)

    def close(self, exit_code: int, is_interrupted: Callable[[], bool]) -> dict[str, float] | None:
        """Read the rest of the hooks' values and of event files, and log a summary of all collected values.

        Return the values that the training has set in W&B's `run.summary`, None if there are none. Waits
        `TIMEOUT_S` at most for each of the two, and for uploads of artifacts until their timeout, or until
        `is_interrupted()` returns True.
        """
        if self._listener is not None:
            self._listener.close(TIMEOUT_S)
        if self._event_files is not None:
            self._event_files.close(TIMEOUT_S)
        for folder in self._wanted_folders:
            if not folder.is_dir():
                self._warn(
                    f"--tensorboard {folder} is not a folder, also after the command: no event file was read"
                )
        self._printed.close()
        if self._artifacts is not None:
            self._artifacts.close(is_interrupted)
        self._caught.finish(exit_code)
        return self._caught.summary or None


def _artifact_uploads(
    run: Run, settings: TrainerSettings, folder: Path | None, warn: Callable[[str], None]
) -> ArtifactUploads | None:
    from trainwire.ingest.hooks.artifacts import ArtifactUploads  # noqa: PLC0415 - of no use without the option

    if settings.checkpoints.bucket is None:
        warn("--upload-artifacts: no bucket is set, so files stay where they are; set TRAINWIRE_CHECKPOINT_BUCKET")
        return None
    try:
        return ArtifactUploads(run, settings, folder)
    except OSError as exc:
        warn(f"--upload-artifacts: files stay where they are: {exc}")
        return None
