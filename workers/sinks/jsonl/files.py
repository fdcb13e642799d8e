"""The files of one job: `<folder>/<day>.jsonl`, then `<day>.2.jsonl` and so on where a file has reached its limit.

Lines are only appended, in the order of `seq`, and only the newest file is ever written. What follows the last
confirmed row was written by a delivery that did not get to its confirmation; the next delivery cuts it off and
writes these rows again, so that each row stands in the files exactly once.
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

from trainwire.schemas.validation import MAX_ID

BLOCK_BYTES: Final = 64 * 1024
LOCK_NAME: Final = ".lock"
_NAME: Final = re.compile(r"(\d{4}-\d{2}-\d{2})(?:\.(\d{1,9}))?\.jsonl")


class Line(NamedTuple):
    """One row as a line with its newline; `day` is the date (UTC) on which Postgres stored it."""

    seq: int
    day: str
    data: bytes


class FileName(NamedTuple):
    """The day of a file and its number among those of the day; files sort by it."""

    day: str
    number: int

    def __str__(self) -> str:
        return f"{self.day}.jsonl" if self.number == 1 else f"{self.day}.{self.number}.jsonl"


class Tail(NamedTuple):
    """The newest file as a delivery left it: its name, its first row and its size."""

    file: str
    first_seq: int
    size_bytes: int


class _Numbered(msgspec.Struct):
    seq: Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]


_decode_number = msgspec.json.Decoder(_Numbered).decode


def append(folder: Path, lines: Sequence[Line], most_bytes: int) -> Tail | None:
    """Write lines behind all with a smaller `seq`, and flush them to the disk. Raises `OSError`.

    Returns the newest file; None where its first line is not one of a row.

    A file is continued up to `most_bytes`; a single longer line has a file of its own.
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
    """Return the first row that the newest file has lost since it was left like that; None where it has all.

    A file that was rotated, so that one named after it stands beside it (`.gz`, `.1`), has lost nothing. Nor has a
    removed file of a day before `next_day`, that of the next line, which goes to another file. Raises `OSError`.
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
    """Return the files of a job in their order; none where the folder does not exist."""
    with suppress(FileNotFoundError):
        found = [_NAME.fullmatch(name) for name in os.listdir(folder)]
        return sorted(FileName(match[1], int(match[2] or 1)) for match in found if match)
    return []


def read_lines(folder: Path) -> Iterator[tuple[int | None, bytes]]:
    """Yield all lines of a job's files with their `seq`, None for a line that has none."""
    for name in file_names(folder):
        with (folder / str(name)).open("rb") as file:
            yield from ((_seq_of(line), line) for line in file)


@dataclass(slots=True)
class Differences:
    """The numbers of lines that differ from their row or have none, and how many lines have no number.

    A line without a row may be of one that retention has removed, or that is newer than `last_seq`, the last row.
    """

    different: set[int] = field(default_factory=set)
    without_row: array[int] = field(default_factory=lambda: array("Q"))
    unreadable: int = 0
    last_seq: int = 0


def compare(rows: Iterable[Line], folder: Path, odd: Differences) -> Iterator[tuple[int, int, int]]:
    """Yield each row's `seq` with the number of its copies, twice, and add what differs to `odd`.

    Rows and files are in the order of `seq`.
    """
    lines = read_lines(folder)
    line = next(lines, None)
    for row in chain(rows, (None,)):
        copies = 0
        while line is not None and (row is None or (line[0] or 0) <= row.seq):
            seq, data = line
            if seq is None:
                odd.unreadable += 1
            elif row is not None and seq == row.seq:
                copies += 1
                odd.different |= {seq} if data != row.data else set()
            else:
                odd.without_row.append(seq)
            line = next(lines, None)
        if row is not None:
            odd.last_seq = row.seq
            yield row.seq, copies, copies


def remove(folder: Path) -> None:
    """Remove the folder of a job with everything in it."""
    with suppress(FileNotFoundError), locked(folder):
        shutil.rmtree(folder)


def remove_before(folder: Path, day: date) -> int:
    """Remove the files of earlier days, and a folder that is then empty; return how many files."""
    names = file_names(folder)
    old = [name for name in names if name.day < day.isoformat()]
    if not old:
        return 0
    with locked(folder):
        for name in old:
            (folder / str(name)).unlink(missing_ok=True)
        if len(old) == len(names):
            (folder / LOCK_NAME).unlink(missing_ok=True)
            with suppress(OSError):  # it has files that are not ours
                folder.rmdir()
    return len(old)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a job's folder; raise `BlockingIOError` where another process has it.

    A worker that has lost its connection to Postgres has lost its lease too, but may still be writing.
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
    """Remove everything from the row `seq` on; return the newest file that is left."""
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
    """Return the offset behind the last whole line of a row before `seq`, read from the end; 0 for none."""
    end, rest = file.seek(0, os.SEEK_END), b""
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        block = file.read(end - start) + rest
        stop = len(block)
        while (newline := block.rfind(b"\n", 0, stop)) >= 0:
            begin = block.rfind(b"\n", 0, newline) + 1
            if begin == 0 and start > 0:
                break  # the line begins in the block before
            found = _seq_of(block[begin:newline])
            if found is not None and found < seq:
                return start + newline + 1
            stop = newline
        end, rest = start, block[: newline + 1] or block
    return 0


def _seq_of(line: bytes) -> int | None:
    try:
        return _decode_number(line).seq
    except (msgspec.DecodeError, UnicodeError):
        return None  # cut off by a crash, or not ours


def _by_file(
    newest: FileName | None, size: int, lines: Iterable[Line], most_bytes: int
) -> Iterator[tuple[FileName, list[Line]]]:
    """Group lines by the file that they are appended to; a line of an earlier day goes to the newest file."""
    name, part = newest, list[Line]()
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
            with suppress(OSError):  # readers see whole lines; the next delivery cuts it in any case
                file.truncate(size)
            raise


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
