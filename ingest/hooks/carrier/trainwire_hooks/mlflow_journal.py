"""Stores MLflow's experiments, runs and models of one launch, in an append-only file shared by its processes."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import note_failure

EXPERIMENTS, RUNS, MODELS = "experiments", "runs", "models"
Fields = dict[str, Any]
Point = tuple[str, float, int, int]
"""Metric name, value, time in milliseconds since 1970, step."""


class History:
    """All values of one metric of a run in MLflow, with step and time; each uses 24 bytes of memory."""

    def __init__(self) -> None:
        self._values, self._times, self._steps = array("d"), array("q"), array("q")
        self.latest: tuple[int, int, float, float] | None = None
        """Step, time, value for the comparison (0 for NaN) and value of the point with the largest step."""

    def add(self, value: float, ts: int, step: int) -> None:
        """Add a value, logged at `ts` (milliseconds since 1970)."""
        self._values.append(value)
        self._times.append(ts)
        self._steps.append(step)
        newest = (step, ts, value if value == value else 0.0, value)  # noqa: PLR0124 - NaN
        if self.latest is None or newest[:3] > self.latest[:3]:
            self.latest = newest

    def sorted(self) -> list[tuple[int, int, float]]:
        """Return (time, step, value) of each distinct point, sorted by time, step and value (NaN as 0)."""
        points = {
            (ts, step, value if value == value else 0.0, value != value): value  # noqa: PLR0124
            for value, ts, step in zip(self._values, self._times, self._steps)  # noqa: B905 - Python 3.9
        }
        return [(key[0], key[1], points[key]) for key in sorted(points)]


class State:
    """The MLflow entities (experiments, runs, models) of a launch, after the changes read so far."""

    def __init__(self) -> None:
        self.experiments: dict[str, Fields] = {}
        self.runs: dict[str, Fields] = {}
        self.models: dict[str, Fields] = {}
        self.histories: dict[tuple[str, str], History] = {}

    def apply(self, kind: str, key: str, fields: Fields) -> None:
        """Change the entity with id `key`; `kind` is `experiments`, `runs` or `models`.

        A dict in `fields` is merged into the stored one (the value None removes a name), a list and `points`
        (metric values) are appended, and any other value replaces the stored one.
        """
        entity = getattr(self, kind).setdefault(key, {})
        for name, value in fields.items():
            before = entity.get(name)
            if name == "points":
                for metric, number, ts, step in value:
                    self._history(entity, key, metric).add(number, ts, step)
            elif isinstance(before, dict):
                before.update(value)
                for gone in [inner for inner, content in value.items() if content is None]:
                    del before[gone]
            elif isinstance(before, list):
                before.extend(value)
            else:
                entity[name] = value

    def _history(self, entity: Fields, key: str, metric: str) -> History:
        history = self.histories.get((key, metric))
        if history is None:
            history = self.histories[key, metric] = History()
            entity.setdefault("metrics", []).append(metric)
        return history


class Journal:
    """The state of MLflow's entities, shared by all processes of a launch through a file in `folder`.

    Each process appends its changes to the file, and reads those of the other processes. If `folder` is None, or
    the file cannot be opened or written, each process has a state of its own.
    """

    def __init__(self, folder: str | None) -> None:
        self._path = None if folder is None else os.path.join(folder, "mlflow.jsonl")
        self._begin()

    def _begin(self) -> None:
        """Reset the state to empty, and open the file.

        A forked child does this too, because the fork may have happened in the middle of a change.
        """
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._offset = 0
        self._file: int | None = None
        self._depth = 0
        self._state = State()
        if self._path is not None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except OSError as exc:
                self._fail(exc)

    @contextmanager
    def open(self, *, writing: bool = False) -> Iterator[State]:
        """Yield the current state, including the changes of other processes.

        With `writing`, a file lock prevents changes by other processes until the block ends.
        """
        if self._pid != os.getpid():
            inherited, kept = self._file, self._state
            self._begin()
            if inherited is not None:
                os.close(inherited)  # its lock is the parent's
            elif self._file is None:
                self._state = kept
        with self._lock:
            locked = self._file if writing and not self._depth else None
            if locked is not None:
                fcntl.flock(locked, fcntl.LOCK_EX)
            self._depth += writing
            try:
                self._read()
                yield self._state
            finally:
                self._depth -= writing
                if locked is not None:
                    fcntl.flock(locked, fcntl.LOCK_UN)

    def change(self, kind: str, key: str, fields: Fields) -> None:
        """Change an entity (see `State.apply`) and append the change to the file.

        Call it only inside a block of `open(writing=True)`.
        """
        self._state.apply(kind, key, fields)
        if self._file is None:
            return
        line = json.dumps([kind, key, fields], separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"{self._path}: no room")  # noqa: TRY301
            self._offset += written
        except OSError as exc:
            self._fail(exc)

    def _read(self) -> None:
        """Apply the changes that other processes have appended to the file."""
        if self._file is None:
            return
        size = os.fstat(self._file).st_size
        if size <= self._offset:
            return
        data = os.pread(self._file, size - self._offset, self._offset)
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            try:
                kind, key, fields = json.loads(line)
            except ValueError:  # of a process that was killed in the middle of a line
                continue
            self._state.apply(kind, key, fields)

    def _fail(self, error: OSError) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        note_failure("mlflow", error)
