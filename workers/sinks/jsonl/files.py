"""Writes and reads the files of one job: `<folder>/<day>.jsonl`, then `<day>.2.jsonl` and so on.

A new file begins at the first line of a later day, and before a line that would make a file too large. Lines are
appended in the order of `seq`, and only to the newest file. Lines after the last confirmed row come from a
delivery that was interrupted before its confirmation. The next delivery truncates them and writes these rows
again, so that each row is in the files exactly once.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Annotated, BinaryIO, Final, NamedTuple

import msgspec

from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.workers.sinks.ranges import Ranges

BLOCK_BYTES: Final = 64 * 1024
LOCK_NAME: Final = ".lock"
_NAME: Final = re.compile(r"(\d{4}-\d{2}-\d{2})(?:\.(\d{1,9}))?\.jsonl")


class JsonLine(NamedTuple):
    """A log row as a line of JSON, with the newline. `day` is the date (UTC) on which Postgres stored the row."""

    seq: int
    day: str
    data: bytes


class FileName(NamedTuple):
    """The name of a file: its day, and its number among the files of this day. Names sort by age."""

    day: str
    number: int

    def __str__(self) -> str:
        return f"{self.day}.jsonl" if self.number == 1 else f"{self.day}.{self.number}.jsonl"


class Tail(NamedTuple):
    """The newest file of a job after a delivery: its name, the `seq` of its first row, and its size in bytes."""

    file: str
    first_seq: int
    size_bytes: int


class _Numbered(msgspec.Struct):
    seq: Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]


_decode_number = msgspec.json.Decoder(_Numbered).decode


def append(folder: Path, lines: Sequence[JsonLine], most_bytes: int) -> Tail | None:
    """Append lines in the order of `seq`, and flush them to the disk; return the newest file.

    `lines` must not be empty. Lines from its first `seq` on that are in the files already are truncated before. A
    new file begins at a line of a later day, and where a file would become larger than `most_bytes`; a line that
    is longer has a file of its own. Returns None if the first line of the newest file has no `seq`. Raises
    `OSError`, also if another process has the lock on the folder.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _flush_folder(folder.parent)
    with locked(folder):
        newest = _cut(folder, lines[0].seq)
        size = 0 if newest is None else (folder / str(newest)).stat().st_size
        for name, part in _by_file(newest, size, lines, most_bytes):
            _write(folder / str(name), b"".join(line.data for line in part))
        _flush_folder(folder)  # the names of new files
        return _tail(folder)


def first_lost(folder: Path, tail: Tail, next_day: str) -> int | None:
    """Return `seq` of the first row that was removed from the newest file since `tail` was stored, or None.

    A file that exists under a longer name (`.gz`, `.1`) was rotated and counts as present. A file of a day before
    `next_day`, the day of the next line, may be removed, because the next line begins another file. Raises
    `OSError`.
    """
    path = folder / tail.file
    size = path.stat().st_size if path.exists() else None
    if size is not None and size >= tail.size_bytes:
        return None
    if folder.is_dir() and any(name.startswith(f"{tail.file}.") for name in os.listdir(folder)):
        return None
    if size is None:
        return tail.first_seq if tail.file >= next_day else None
    with path.open("rb") as file:
        left = [_seq_of(line) or 0 for line in file if line.endswith(b"\n")]
    return max([tail.first_seq, *(seq + 1 for seq in left[-1:])])


def file_names(folder: Path) -> list[FileName]:
    """Return the names of a job's files, oldest first; an empty list if the folder does not exist."""
    with suppress(FileNotFoundError):
        found = [_NAME.fullmatch(name) for name in os.listdir(folder)]
        return sorted(FileName(match[1], int(match[2] or 1)) for match in found if match)
    return []


def read_lines(folder: Path) -> Iterator[tuple[int | None, bytes]]:
    """Yield (`seq`, line) for all lines of a job's files; `seq` is None if a line does not contain it."""
    for name in file_names(folder):
        with (folder / str(name)).open("rb") as file:
            yield from ((_seq_of(line), line) for line in file)


@dataclass(slots=True)
class FileComparison:
    """The result of comparing the rows of a job with the lines in its files.

    Each row is in the files, waiting for its delivery, or missing. `twice` are rows with several lines,
    `different` rows with a line of other content. `without_row` are the `seq` of lines without a row: retention
    may have deleted it, or it is newer than `last_seq`, the last row that was read.
    """

    rows: int = 0
    in_files: int = 0
    waiting: int = 0
    missing: Ranges = field(default_factory=Ranges)
    twice: Ranges = field(default_factory=Ranges)
    different: Ranges = field(default_factory=Ranges)
    without_row: array[int] = field(default_factory=lambda: array("Q"))
    unreadable: int = 0
    """Number of lines that are not JSON with a `seq`."""
    last_seq: int = 0

    def add(self, seq: int, lines: Sequence[bytes], data: bytes, *, may_wait: bool) -> None:
        """Add the row `seq` to the result.

        `data` is the line that the files should contain; `lines` are the lines with this `seq` that they do
        contain. A row without a line counts as waiting if `may_wait`, else as missing.
        """
        self.rows, self.last_seq = self.rows + 1, seq
        if lines:
            self.in_files += 1
        elif may_wait:
            self.waiting += 1
        else:
            self.missing.add(seq)
        if len(lines) > 1:
            self.twice.add(seq)
        if any(line != data for line in lines):
            self.different.add(seq)


def compare(rows: Iterable[JsonLine], folder: Path, confirmed_seq: int = 0) -> FileComparison:
    """Compare the rows of a job, in the order of `seq`, with the lines in its files.

    Rows after `confirmed_seq` that are not in the files count as waiting. Raises `OSError` if a file cannot be
    read.
    """
    found = FileComparison()
    lines = read_lines(folder)
    line = next(lines, None)
    for row in chain(rows, (None,)):
        of_row: list[bytes] = []
        while line is not None and (row is None or (line[0] or 0) <= row.seq):
            seq, data = line
            if seq is None:
                found.unreadable += 1
            elif row is not None and seq == row.seq:
                of_row.append(data)
            else:
                found.without_row.append(seq)
            line = next(lines, None)
        if row is not None:
            found.add(row.seq, of_row, row.data, may_wait=row.seq > confirmed_seq)
    return found


def remove(folder: Path) -> None:
    """Delete the folder of a job with all its content, if it exists; raise `OSError` like `append`."""
    with suppress(FileNotFoundError), locked(folder):
        shutil.rmtree(folder)


def remove_before(folder: Path, day: date) -> int:
    """Delete the files of days before `day`, and the folder if it is then empty; return the number of files.

    Raises `OSError` like `append`.
    """
    names = file_names(folder)
    old = [name for name in names if name.day < day.isoformat()]
    if not old:
        return 0
    with locked(folder):
        for name in old:
            (folder / str(name)).unlink(missing_ok=True)
        if len(old) == len(names):
            (folder / LOCK_NAME).unlink(missing_ok=True)
            with suppress(OSError):  # it has other files
                folder.rmdir()
    return len(old)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a job's folder for the block; raise `BlockingIOError` if another process has the lock.

    The lease in Postgres is not enough: a worker that has lost its connection to Postgres may still be writing.
    """
    with (folder / LOCK_NAME).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _tail(folder: Path) -> Tail | None:
    path = folder / str(file_names(folder)[-1])
    with path.open("rb") as file:
        first_seq = _seq_of(file.readline())
        return None if first_seq is None else Tail(path.name, first_seq, file.seek(0, os.SEEK_END))


def _cut(folder: Path, seq: int) -> FileName | None:
    """Delete all lines after the last one whose row is before `seq`; return the newest file left, or None."""
    for name in reversed(file_names(folder)):
        path = folder / str(name)
        with path.open("r+b") as file:
            end = _end_before(file, seq)
            if end:
                file.truncate(end)
                return name
        path.unlink()
    return None


def _end_before(file: BinaryIO, seq: int) -> int:
    """Return the offset of the end of the last line whose row is before `seq`; 0 if there is none.

    Searches backwards from the end of the file.
    """
    end, rest = file.seek(0, os.SEEK_END), b""
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        block = file.read(end - start) + rest
        stop = len(block)
        while (newline := block.rfind(b"\n", 0, stop)) >= 0:
            begin = block.rfind(b"\n", 0, newline) + 1
            if begin == 0 and start > 0:
                break  # the line begins in an earlier block
            found = _seq_of(block[begin:newline])
            if found is not None and found < seq:
                return start + newline + 1
            stop = newline
        end, rest = start, block[: newline + 1] or block
    return 0


def _seq_of(line: bytes) -> int | None:
    try:
        return _decode_number(line).seq
    except DECODE_ERRORS:
        return None  # truncated by a crash, or written by another program


def _by_file(
    newest: FileName | None, size: int, lines: Iterable[JsonLine], most_bytes: int
) -> Iterator[tuple[FileName, list[JsonLine]]]:
    """Yield consecutive lines grouped by the file to append them to, beginning with `newest` of `size` bytes.

    A new file begins at a line of a later day, and before a line that would make the file larger than
    `most_bytes`. A line of an earlier day goes into the current file.
    """
    name, part = newest, list[JsonLine]()
    for line in lines:
        next_name = name
        if name is None or line.day > name.day:
            next_name = FileName(line.day, 1)
        elif size and size + len(line.data) > most_bytes:
            next_name = FileName(name.day, name.number + 1)
        if next_name != name:
            if name is not None and part:
                yield name, part
            name, part, size = next_name, [], 0
        part.append(line)
        size += len(line.data)
    if name is not None:
        yield name, part


def _write(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # for readers; the next delivery truncates it anyway
                file.truncate(size)
            raise


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
