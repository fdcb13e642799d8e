"""Supports `pickle` and `copy` for runs.

A pickle loaded in the same process or in a fork gives the same run, elsewhere a new run of the same job.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from weakref import WeakValueDictionary

from trainwire.ingest.servers.destinations import ANY_STACK, STACK_IN, destination_of
from trainwire.ingest.servers.server_names import server_of
from trainwire.ingest.settings.trainer_settings import TrainerSettings

if TYPE_CHECKING:
    from trainwire.ingest.output.capture import Capture
    from trainwire.ingest.run import Run
    from trainwire.ingest.sending.session import Session

Handle: TypeAlias = dict[str, Any]
"""The content of a pickled run, in built-in types. It has no password and no reported values."""

_runs: WeakValueDictionary[str, Run] = WeakValueDictionary()
"""The runs of this process and, after a fork, of its parent, by a random token that the pickle has too."""


class SharedRun:
    """Mixin of `Run`: `copy` returns the run itself; `pickle` restores it, or a new run of the same job."""

    job_id: int
    attempt: int
    rank: int | None
    _token: str
    _address: str
    _started_at: int
    _is_launched: bool
    _capture: Capture | None
    _session: Session

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the function that restores the run, and its arguments (see `pickle`)."""
        handle = {
            "token": self._token,
            "job_id": self.job_id,
            "attempt": self.attempt,
            "rank": self.rank,
            "started_at": self._started_at,
            "address": self._address,
            "traceparent": self._session.outbox.origin.traceparent,
            "is_captured": self._is_launched or self._capture is not None,
        }
        return restored, (type(self), handle)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return the run itself, so that a copy of an object that contains the run reports to the same run."""
        return self


def register(run: Run, token: str | None = None) -> str:
    """Register `run` under a token, so that its pickles are restored as the same object in this process.

    Returns the token, which is a new one if `token` is None.
    """
    token = token or os.urandom(12).hex()
    _runs[token] = run
    return token


def restored(run_type: type[Run], handle: Handle) -> Run:
    """Return the run for a pickle: the same run, else another run of its job in this process, else a new one.

    A training may resume from a checkpoint that contains its former run: another run of the job, preferably an
    open one, takes its place. A new run behaves as in a forked child: it numbers its own messages, sends no
    completion of the job, and claims no rank.
    """
    known = _runs.get(handle["token"])
    if known is None:  # the newest unfinished one, or else a finished one, which leaves out later calls
        same = [run for run in _runs.values() if run.job_id == handle["job_id"]]
        known = max(reversed(same), key=_is_open, default=None)
    return known or run_type._joined(handle, _settings_here(handle["address"]))  # noqa: SLF001


def _is_open(run: Run) -> bool:
    return not run._session.buffer.is_closed  # noqa: SLF001


def address_of(settings: TrainerSettings) -> str:
    """Return the address of the server for a pickle, without user and password: pickles are stored and shared."""
    return destination_of(settings).public_address


def _settings_here(address: str) -> TrainerSettings:
    """Return the settings from the environment of this process, with the server address in the pickle.

    Invalid settings are replaced by the defaults, and TRAINWIRE_STRICT is off.
    """
    try:
        settings = TrainerSettings.from_env()
    except ValueError:  # `Run(...)` reports a wrong setting; unpickling must not raise
        settings = TrainerSettings()
    if address.startswith(STACK_IN):
        settings = settings.at_stack(Path(address.removeprefix(STACK_IN)))
    elif address != ANY_STACK and (settings.streams is None or server_of(settings.streams) != server_of(address)):
        settings = settings.at_server(address)
    return settings.strictly(False)
