"""Reads TensorBoard event files while a training writes them, if a library without a hook (TensorFlow) does so."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from trainwire.ingest.hooks.caught import TENSORBOARD, Caught
from trainwire.ingest.hooks.tensorboard_events import DamagedEventError, Event, EventDecoder
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import start_daemon

EVERY_S: Final = 1.0
PATTERN: Final = "events.out.tfevents."
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024
MOST_ENTRIES: Final = 20_000
"""Maximum number of files and folders that one search examines: a working folder may hold a data set."""
MOST_SHARE: Final = 0.05
"""Largest share of the thread's time that it spends on searching and reading.

After a slow search, as on a network file system, the next pause is longer.
"""
SLACK_NS: Final = 60 * 10**9
"""An event that is older than the start of the command by more than this belongs to an earlier training.

The values in it, hyperparameters and texts too, are counted and not stored.
"""
_READ_BYTES: Final = 1024 * 1024
_HEADER: Final = struct.Struct("<Q4x")  # length, and its checksum
_FOOTER_BYTES: Final = 4  # the checksum of the data


class EventFile:
    """Reads one event file, a sequence of records.

    A record is length (8 bytes), checksum of the length (4), data, checksum of the data (4). Checksums are not
    verified: an incomplete record, whose writer was killed, is detected by its length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._rest = b""
        self._decoder = EventDecoder()

    def events(self) -> Iterator[Event]:
        """Yield the events appended since the last call.

        Raises `DamagedEventError` for invalid bytes, and `OSError` if the file cannot be read.
        """
        if self._file is None:
            self._file = self.path.open("rb")
        while chunk := self._file.read(_READ_BYTES):
            self._rest += chunk
            yield from self._whole_events()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _whole_events(self) -> Iterator[Event]:
        at = 0
        while len(self._rest) - at >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._rest, at)
            if size > MAX_EVENT_BYTES:
                raise DamagedEventError(f"a record of {size} bytes")
            end = at + _HEADER.size + size
            if end + _FOOTER_BYTES > len(self._rest):
                break
            yield self._decoder.decode(self._rest[at + _HEADER.size : end])
            at = end + _FOOTER_BYTES
        self._rest = self._rest[at:]


class EventFiles:
    """Searches `folders` in a thread for new event files, and reads them until `close`.

    It searches every `EVERY_S` seconds, less often if a search is slow. Files that exist before are not read.
    """

    def __init__(self, folders: Sequence[Path], caught: Caught) -> None:
        self._folders = folders
        self._caught = caught
        self._files: dict[Path, EventFile | None] = dict.fromkeys(self._found())  # of earlier runs: None
        self._started_at_ns = time.time_ns()
        self._closing = threading.Event()
        self._thread = start_daemon(self._follow, "trainwire-event-files")

    def close(self, timeout_s: float) -> None:
        """Search and read once more, then end the thread; wait for this at most `timeout_s` seconds."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _follow(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(max(EVERY_S, pause_s)):
            began_s = monotonic_s()
            self._read_new_events()
            pause_s = (monotonic_s() - began_s) / MOST_SHARE
        self._read_new_events()
        for file in self._files.values():
            if file is not None:
                file.close()

    def _read_new_events(self) -> None:
        for path in self._found():
            if path not in self._files and not self._caught.is_hooked(str(path.parent)):
                self._files[path] = EventFile(path)
        for path, file in self._files.items():
            if file is not None:
                self._read(path, file)

    def _read(self, path: Path, file: EventFile) -> None:
        try:
            for event in file.events():
                if event.ts < self._started_at_ns - SLACK_NS:
                    if count := event.count():
                        self._caught.not_taken(TENSORBOARD, "event of an earlier run", count)
                else:
                    self._caught.event(str(path.parent), event, None)
        except (OSError, DamagedEventError) as exc:
            self._caught.failed(path.name, f"{exc}: the rest of this file is not read")
            file.close()
            self._files[path] = None

    def _found(self) -> Iterator[Path]:
        left = MOST_ENTRIES
        for folder in self._folders:
            for place, folders, names in os.walk(folder):
                left -= len(folders) + len(names)
                if left < 0:
                    return
                folders[:] = [name for name in folders if not name.startswith(".")]
                found = (Path(place, name) for name in names if name.startswith(PATTERN))
                yield from (path for path in found if os.path.isfile(path))  # not a named pipe, which has no end
