"""Chooses the job numbers of the runs of this process, and exports them to child processes."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import msgspec

from trainwire.ingest.identity.job_numbers import make_number, number_of
from trainwire.ingest.process.forks import renew_in_children
from trainwire.ingest.process.launches import UnknownLaunch, is_one_of_several
from trainwire.ingest.process.ranks import Place
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.settings.variables import (
    ATTEMPT_VARIABLE,
    CAPTURED_VARIABLE,
    JOB_ID_VARIABLE,
    JOB_NAME_VARIABLE,
    LAUNCHER_FOLDER_VARIABLE,
    PARENT_VARIABLE,
    TRACE_VARIABLE,
)

_OF_ONE_JOB: Final = (
    JOB_ID_VARIABLE,
    JOB_NAME_VARIABLE,
    PARENT_VARIABLE,
    ATTEMPT_VARIABLE,
    CAPTURED_VARIABLE,
    LAUNCHER_FOLDER_VARIABLE,
    TRACE_VARIABLE,
)


class JobNumber(NamedTuple):
    """The number of a job; `is_made` is True if trainwire made it, because the user chose none."""

    job_id: int
    is_made: bool = False


class _OpenRun(msgspec.Struct):
    job_id: int
    attempt: int
    started_at_ns: int
    traceparent: str | None = None
    capturing_source: str | None = None


class OpenRuns:
    """Chooses the job number of each `Run` in this process, and sets it in the environment while the run is open.

    The first run gets the number in TRAINWIRE_JOB_ID, if that is set. Each later run, as in a loop over
    parameters, is a new job with a new number.
    """

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """In a forked child, forget the parent's runs; environment variables set by the parent stay unchanged."""
        self._used: set[int] = set()
        self._open: dict[int, _OpenRun] = {}
        self._before: dict[str, str | None] = {}
        self._derived = 0

    def number_for(self, settings: TrainerSettings, place: Place) -> JobNumber:
        """Return the job number for a `Run` that was created without a number.

        This is the configured number if no run of this process has used it, else a new one, which is the same in
        all ranks of a launch.

        Raises `UnknownLaunch` if this process is one of several ranks that cannot compute the same number.
        """
        configured = settings.job_id
        if configured is not None and configured not in self._used:
            return JobNumber(configured)
        if not is_one_of_several(place):
            return JobNumber(make_number(), is_made=True)
        launch = settings.launch if configured is None else f"job:{configured}"
        if launch is None:
            raise UnknownLaunch(place)
        self._derived += 1
        return JobNumber(number_of(f"{launch}#{self._derived}"), is_made=True)

    def begin(
        self, run: object, job_id: int, attempt: int, started_at_ns: int, traceparent: str | None = None
    ) -> None:
        """Set environment variables that give child processes the job number, attempt and start time of `run`.

        `traceparent` identifies its span, if it is traced.
        """
        if not self._open:
            self._before = {name: os.environ.get(name) for name in _OF_ONE_JOB}
        self._used.add(job_id)
        self._open[id(run)] = _OpenRun(job_id, attempt, started_at_ns, traceparent)
        self._export()

    def note_capture(self, run: object, source: str) -> None:
        """Set an environment variable that keeps child processes from capturing their output: `source` logs it.

        Does nothing if `run` has ended.
        """
        if id(run) in self._open:
            self._open[id(run)].capturing_source = source
            self._export()

    def end(self, run: object) -> None:
        """Set the environment variables to the newest run that is still open.

        If no run is open, restore the values from before the first run.
        """
        if self._open.pop(id(run), None) is not None:
            self._export()

    def _export(self) -> None:
        wanted = dict(self._before)
        if self._open:
            newest = list(self._open.values())[-1]
            if wanted[JOB_ID_VARIABLE] != str(newest.job_id):  # the other variables are of the job of before
                wanted = dict.fromkeys(_OF_ONE_JOB)
                wanted[JOB_ID_VARIABLE] = str(newest.job_id)
            wanted[PARENT_VARIABLE] = f"{newest.job_id}:{newest.attempt}:{newest.started_at_ns}"
            wanted[TRACE_VARIABLE] = newest.traceparent
            wanted[CAPTURED_VARIABLE] = newest.capturing_source or wanted[CAPTURED_VARIABLE]
        for name, value in wanted.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


open_runs: Final = OpenRuns()
