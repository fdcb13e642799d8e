"""Starts the processes of the stack in order, restarts those that end, and stops the stores last."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Protocol

from trainwire.schemas.backoff import Backoff
from trainwire.stack.child import Child, OpenProcess, shown_exit
from trainwire.stack.errors import PartFailed

WATCH_EVERY_S: Final = 0.05
RESTARTS: Final = Backoff(first_s=0.2, cap_s=10.0)
"""Backoff of restarts after the first one, which has no delay.

Without jitter: the processes of one stack rarely fail at the same time.
"""
HEALTHY_AFTER_S: Final = 30.0
"""After a part has run for this many seconds, its next restart has no delay again."""
HEALTHY_IF_KILLED_AFTER_S: Final = 1.0
"""The same for a part that was killed by SIGKILL, which a user or the kernel has sent: the part had not failed.

Valid for `FREE_KILLS` kills.
"""
FREE_KILLS: Final = 5
"""Kills without a delay. A part that is killed more often within short times, such as for the memory that it uses,
does not become useful by a start at once, and each start costs the machine CPU time.
"""
KILLS_FORGOTTEN_AFTER_S: Final = 10.0
"""After a part has run for this many seconds, its next `FREE_KILLS` kills have no delay again."""

Report = Callable[[str], None]


class StackPart(Protocol):
    """Interface of one process of the stack; `start` returns when the process is ready."""

    @property
    def name(self) -> str:
        """The name of the process, also used for its log file."""

    @property
    def is_store(self) -> bool:
        """Whether the process is Postgres or Valkey, which are stopped after all others."""

    @property
    def child(self) -> Child:
        """The child process itself."""

    def start(self) -> None:
        """Start the process and wait until it is ready; raise `PartFailed` if it does not become ready."""


class CommandPart:
    """A process of the stack that runs a command, and counts as ready as soon as it is started."""

    is_store: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        data_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        stop_timeout_s: float = 10.0,
        opener: OpenProcess | None = None,
    ) -> None:
        self.name = name
        self.child = Child(name, data_dir, stop_timeout_s=stop_timeout_s)
        self._command = command
        self._env = env
        self._opener = opener

    def start(self) -> None:
        """Start the command."""
        self.child.start(self._command, self._env, opener=self._opener)


@dataclass
class _Watched:
    part: StackPart
    started_at: float
    quick_ends: int = 0
    free_kills: int = FREE_KILLS
    restart_at: float | None = None


class Supervisor:
    """Starts, restarts and stops the processes of the stack; reports each step as a line of text to `report`."""

    def __init__(self, report: Report, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._watched: list[_Watched] = []
        self._stop_requested = False

    @property
    def stop_requested(self) -> bool:
        """Whether `request_stop` was called."""
        return self._stop_requested

    def start(self, part: StackPart) -> None:
        """Start the process `part`, and restart it from now on when it ends.

        Raise `PartFailed` if it does not become ready.
        """
        watched = _Watched(part, self._clock())
        self._watched.append(watched)
        part.start()
        self._report(f"{part.name}: started in {self._clock() - watched.started_at:.1f} s")

    def request_stop(self) -> None:
        """Make a `start` that waits raise `PartFailed` soon, and `watch` return; safe in a signal handler."""
        self._stop_requested = True
        for watched in self._watched:
            watched.part.child.stop_waiting()

    def watch(self, and_then: Callable[[], None]) -> None:
        """Restart processes that end, until a stop is requested; call `and_then` after each check."""
        while not self._stop_requested:
            self.check()
            and_then()
            time.sleep(WATCH_EVERY_S)

    def check(self) -> None:
        """Check every process once: schedule a restart if it has ended, and restart it when that is due."""
        for watched in self._watched:
            if self._stop_requested:
                return
            if watched.restart_at is None:
                self._note_end(watched)
            elif self._clock() >= watched.restart_at:
                self._start_again(watched)

    def stop(self) -> None:
        """Stop all processes within their timeouts.

        Processes that use the stores are stopped first, in parallel, then the stores.
        """
        parts = [watched.part for watched in reversed(self._watched)]
        users = [part for part in parts if not part.is_store]
        with ThreadPoolExecutor(max(1, len(users))) as pool:
            list(pool.map(self._stop_part, users))
        for part in parts:
            if part.is_store:
                self._stop_part(part)
        self._watched.clear()

    def kill(self) -> None:
        """Send SIGKILL to all processes of the stack."""
        for watched in reversed(self._watched):
            watched.part.child.kill()

    def _stop_part(self, part: StackPart) -> None:
        was_running, began = part.child.is_running(), self._clock()
        part.child.stop()
        if was_running:
            self._report(f"{part.name}: stopped in {self._clock() - began:.1f} s")

    def _note_end(self, watched: _Watched) -> None:
        child = watched.part.child
        code = child.exit_code()
        if code is None:
            return
        if self._was_healthy(watched, code):
            watched.quick_ends = 0
        delay_s = self._schedule(watched)
        tail = child.log_tail() if watched.quick_ends > 2 else f" (log: {child.log_path})"
        when = f" in {delay_s:.1f} s" if delay_s else ""
        self._report(f"{watched.part.name}: {_ended(code)}, starting it again{when}{tail}")
        if not delay_s:
            self._start_again(watched)

    def _was_healthy(self, watched: _Watched, code: int) -> bool:
        """Return whether a part that has ended with `code` is started again without a delay; count its kills."""
        ran_s = self._clock() - watched.started_at
        if ran_s > KILLS_FORGOTTEN_AFTER_S:
            watched.free_kills = FREE_KILLS
        if code == -signal.SIGKILL and ran_s > HEALTHY_IF_KILLED_AFTER_S and watched.free_kills:
            watched.free_kills -= 1
            return True
        return ran_s > HEALTHY_AFTER_S

    def _start_again(self, watched: _Watched) -> None:
        watched.started_at = self._clock()
        try:
            watched.part.start()
        except PartFailed as exc:
            if not self._stop_requested:
                delay_s = self._schedule(watched)
                self._report(f"{watched.part.name}: next start in {delay_s:.1f} s, because {exc}")
            return
        watched.restart_at = None
        self._report(f"{watched.part.name}: started again in {self._clock() - watched.started_at:.1f} s")

    def _schedule(self, watched: _Watched) -> float:
        watched.quick_ends += 1
        later = watched.quick_ends - 1
        delay_s = RESTARTS.delay_s(later, jitter=lambda: 1.0) if later else 0.0
        watched.restart_at = self._clock() + delay_s
        return delay_s


def _ended(code: int) -> str:
    shown = shown_exit(code)
    return shown if code < 0 else f"ended with {shown}"
