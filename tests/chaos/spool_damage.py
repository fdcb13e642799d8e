"""Damages segments of spools, and records which messages were destroyed, for the check of the sums."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec
import psutil

from trainwire.ingest.spool.folder import About, SourceFolder, read_about, source_folders
from trainwire.ingest.spool.segments import Damage, Record, unframed
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import Envelope
from trainwire.schemas.wire.messages import Body, Logs, Metrics

_KINDS: Final[tuple[Kind, ...]] = ("logs", "metrics")
"""The kinds whose segments are damaged."""

Lane = tuple[int, str, Kind]
"""Job, source and kind."""
Item = str | int
"""The text of a line, or the step of a point."""

_decode = msgspec.msgpack.Decoder(Record).decode


class SpoolDamage:
    """Deletes, truncates and changes segment files.

    Each file is read before and after: `destroyed` has the messages that are no longer in it, with their lines or
    steps. A message that Redis already had is among them and may be stored all the same.
    """

    def __init__(self, spool: Path, chance: random.Random) -> None:
        self._spool = spool
        self._chance = chance
        self.destroyed: dict[Lane, dict[int, list[Item]]] = defaultdict(dict)

    def damage_living(self, pid: int) -> None:
        """Damage the spool of a running process, which is suspended meanwhile.

        The file that it writes to is only truncated: later writes to a deleted file could not be recorded.
        """
        process = psutil.Process(pid)
        process.suspend()
        try:
            for folder, about in self._folders(pid):
                self._damage(folder, about, is_written=True)
        finally:
            process.resume()

    def damage_dead(self, pid: int) -> None:
        """Damage the spool of a process that has ended, unless another one is sending it."""
        for folder, about in self._folders(pid):
            claimed = SourceFolder.claim(folder)
            if claimed is not None:
                self._damage(folder, about, is_written=False)
                claimed.forget()

    def _folders(self, pid: int) -> list[tuple[Path, About]]:
        found = [(folder, read_about(folder)) for folder in source_folders(self._spool)]
        return [(folder, about) for folder, about in found if about is not None and about.pid == pid]

    def _damage(self, folder: Path, about: About, *, is_written: bool) -> None:
        for kind in _KINDS:
            paths = sorted(folder.glob(f"{kind}-*.seg"))
            for path in self._chance.sample(paths, k=self._chance.randint(0, len(paths))):
                before = _records(path)
                is_open = is_written and path == paths[-1]
                how = _truncate if is_open else self._chance.choice([_delete, _truncate, _change_bytes])
                how(path, self._chance)
                left = {record.seq for record in _records(path)}
                gone = [record for record in before if record.seq not in left]
                lane = self.destroyed[about.job_id, about.source, kind]
                lane |= {record.seq: _items(kind, about, record) for record in gone}
                print(
                    f"           {path.name} of {folder.name}: {how.__name__[1:]}, {len(gone)} messages",
                    flush=True,
                )


def _delete(path: Path, _: random.Random) -> None:
    path.unlink()


def _truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size + 1))


def _change_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(min(len(data), 3)):
        data[chance.randrange(len(data))] ^= 0xFF
    path.write_bytes(data)


def _records(path: Path) -> list[Record]:
    data = path.read_bytes() if path.exists() else b""
    return [_decode(payload) for payload in unframed(data) if not isinstance(payload, Damage)]


def _items(kind: Kind, about: About, record: Record) -> list[Item]:
    envelope = Envelope(about.job_id, about.attempt, about.source, record.seq, record.encoding, record.body)
    return items_of(decode_body(kind, envelope))


def items_of(body: Body) -> list[Item]:
    """Return the texts of the lines of a message, or the steps of its points."""
    if isinstance(body, Logs):
        return list(body.lines)
    assert isinstance(body, Metrics)
    return [point.step for point in body.points if point.step is not None]
