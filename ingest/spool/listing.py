"""Lists the sources in a spool for display. Changes no file, and works while sources write messages."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainwire.ingest.process.proc_stat import is_alive
from trainwire.ingest.spool.folder import About, is_owned, read_about, source_folders
from trainwire.ingest.spool.segments import Segments
from trainwire.schemas.keys import KINDS, Kind


@dataclass(frozen=True)
class Spooled:
    """The folder of one source in the spool.

    `messages` counts the messages on the disk by kind; some of them may be stored already.
    """

    path: Path
    about: About
    is_live: bool
    written_at: datetime
    size_bytes: int
    messages: dict[Kind, int]

    @property
    def count(self) -> int:
        """The number of messages of all kinds."""
        return sum(self.messages.values())

    @property
    def is_being_sent(self) -> bool:
        """Whether another process of this machine has locked the folder of an ended source, to send it."""
        return self.is_live and self.about.host == socket.gethostname() and not is_alive(self.about.pid)


def list_spool(spool: Path) -> Iterator[Spooled]:
    """Yield a description of the folder of each source that can be read, the oldest first."""
    for path in source_folders(spool):
        try:
            found = _read(path)
        except OSError:  # its owner has just removed it
            continue
        if found is not None:
            yield found


def _read(path: Path) -> Spooled | None:
    about = read_about(path)
    if about is None:
        return None
    kept = {kind: Segments(path, kind) for kind in KINDS}
    return Spooled(
        path=path,
        about=about,
        is_live=is_owned(path),
        written_at=datetime.fromtimestamp(max(file.stat().st_mtime for file in path.iterdir()), UTC),
        size_bytes=sum(segments.size_bytes for segments in kept.values()),
        messages={kind: segments.count for kind, segments in kept.items() if segments.count},
    )
