"""Writes `.wandb` files with the blocks and checksums that W&B's own writer makes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

from tests.unit.ingest.test_event_files import field
from trainwire.cli.transfer.readers.wandb_file import BLOCK_BYTES, FILE_HEADER, FIRST, FULL, LAST, MIDDLE

START_S = 1_700_000_000


def wandb_file(path: Path, *records: bytes, age_s: float = 3600.0) -> Path:
    """Write a file of records that was last changed `age_s` ago; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_of(records))
    set_age(path, age_s)
    return path


def set_age(path: Path, age_s: float) -> None:
    """Let a file have been changed `age_s` ago."""
    at = path.stat().st_atime - age_s
    os.utime(path, (at, at))


def file_of(records: Iterable[bytes]) -> bytes:
    """Return the content of a file."""
    content = bytearray(FILE_HEADER)
    for record in records:
        rest, is_first = record, True
        while is_first or rest:
            room = BLOCK_BYTES - len(content) % BLOCK_BYTES
            if room < 7:
                content += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (LAST if not rest else MIDDLE) if not is_first else FULL if not rest else FIRST
            content += struct.pack("<IHB", crc32(part, crc32(bytes((kind,)))), len(part), kind) + part
            is_first = False
    return bytes(content)


def record(kind: int, content: bytes) -> bytes:
    """Return a record with its number, as W&B writes it."""
    return field(1, 7) + field(kind, content)


def item(names: str | tuple[str, ...], raw: str | bytes) -> bytes:
    """Return a named value, by one name or by nested ones."""
    keys = field(1, names.encode()) if isinstance(names, str) else b"".join(field(2, n.encode()) for n in names)
    return keys + field(16, raw.encode() if isinstance(raw, str) else raw)


def time_of(seconds: float) -> bytes:
    """Return a time after the start of the run."""
    return field(1, START_S + int(seconds)) + field(2, round(seconds % 1 * 1e9))


def run_record(run_id: str = "abc123", name: str = "", **config: Any) -> bytes:
    """Return the record of a run."""
    items = b"".join(field(1, item(key, json.dumps(value))) for key, value in config.items())
    texts = {1: run_id, 3: "digits", 6: "group-1", 8: name, 9: "a note", 10: "base"}
    about = b"".join(field(number, text.encode()) for number, text in texts.items() if text)
    return record(17, about + field(4, items) + field(17, time_of(0)))


def history(step: int, values: dict[str, Any], at_s: float | None = None) -> bytes:
    """Return the record of one step; a text is taken as JSON as it stands."""
    axes = {"_timestamp": START_S + (step if at_s is None else at_s), "_step": step}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    texts |= {name: json.dumps(value) for name, value in axes.items()}
    items = b"".join(field(1, item((name,), raw)) for name, raw in texts.items())
    return record(2, items + field(2, field(1, step) if step else b""))


def output(text: str, at_s: float = 1.0, *, is_stderr: bool = False) -> bytes:
    """Return the record of a printed text."""
    return record(13, (b"" if is_stderr else field(1, 1)) + field(2, time_of(at_s)) + field(3, text.encode()))


def exit_record(code: int, runtime_s: int = 60) -> bytes:
    """Return the record of the end of a run."""
    return record(18, (field(1, code & (1 << 64) - 1) if code else b"") + field(2, runtime_s))
