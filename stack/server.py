"""Base class of the embedded servers: a persistent port, and the start, stop and kill of the process."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from trainwire.stack.child import Child
from trainwire.stack.errors import PartFailed
from trainwire.stack.persisted_config import Port, moved

READY_TIMEOUT_S: Final = 120
"""Seconds; long enough to recover, after a crash, 4 GB of WAL or an append-only file of some gigabytes."""


class EmbeddedServer(ABC):
    """A server on 127.0.0.1 with its data below `data_dir`.

    Subclasses define the command and the readiness check.
    """

    name: ClassVar[str]
    is_store: ClassVar[bool] = True
    stop_signal: ClassVar[signal.Signals]
    stop_timeout_s: ClassVar[float]

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._port = Port(self._data_dir, self.name)
        self.child = Child(
            self.name, self._data_dir, stop_signal=self.stop_signal, stop_timeout_s=self.stop_timeout_s
        )

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL of the server, with the password."""

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; it no longer changes once the server has been ready."""
        return self._port.number

    @property
    def moved(self) -> str | None:
        """A sentence for the terminal if the port differs from that of the last start; None if it is the same."""
        return moved(self._port)

    def start(self) -> None:
        """Start the server and wait until it is ready.

        At the first start, create its files. If another process has bound the port, use another one (see
        `Port.start`). Raises `PartFailed` if the server ends or is not ready after READY_TIMEOUT_S.
        """
        self._port.start(self._start_once)

    def _start_once(self) -> None:
        self._prepare()
        self.child.start(self._command())
        try:
            self.child.wait_ready(self._is_ready, READY_TIMEOUT_S)
        except PartFailed:
            self.child.kill()
            raise

    def stop(self) -> None:
        """Shut the server down (`Child.stop`).

        All confirmed writes are on disk afterwards, unless the server must be killed after its stop timeout.
        """
        self.child.stop()

    def kill(self) -> None:
        """Send SIGKILL to the server and its child processes, without a shutdown."""
        self.child.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Create the files of the server, or check existing ones."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that runs the server in the foreground."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether the child process itself, and no other process on its port, accepts connections.

        Raises `PartFailed` if it can never become ready, for example because the password is wrong.
        """
