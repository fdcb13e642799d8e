"""A run of another tool as a sequence of items, with counts of the items that are read and skipped."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from trainwire.ingest.identity.job_numbers import number_of
from trainwire.schemas.limits import MAX_LINE_CHARS, MAX_METRIC_NAME_CHARS
from trainwire.schemas.messages import Outcome, Point
from trainwire.stack.errors import Problem

Counted = Literal["points", "lines", "files"]
LogType = Literal["stdout", "stderr"]
COUNTED: Final[tuple[Counted, ...]] = ("points", "lines", "files")
IMPORT_SOURCE: Final = "import-"
"""Prefix of the sources of imported runs."""
MOST_CHARS: Final = MAX_LINE_CHARS // 4
"""Of one line: a character has up to four bytes."""
DAMAGED: Final = "read up to an error"
MIN_NS, MAX_NS = -(2**63), 2**63 - 1
"""Times in messages are integers of 64 bits: the years 1677 to 2262."""
OUT_OF_RANGE: Final = "time is out of range"
LONG_NAME: Final = f"name over {MAX_METRIC_NAME_CHARS:,} characters"
LONG_TEXT: Final = f"text over {MOST_CHARS:,} characters"
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first item of a run.

    `mlflow_run_id` is set only if jobs are mirrored to the MLflow server that the run is read from.
    """

    name: str
    started_ns: int | None
    tags: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] | None = None
    mlflow_run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text."""

    ts: int
    text: str
    log_type: LogType = "stdout"


@dataclass(frozen=True, slots=True)
class Params:
    """All parameters read so far, for tools that record them later than the header."""

    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class End:
    """The last item of a run; the status is `ended` if the tool does not record an outcome."""

    ts: int
    status: Outcome = "ended"
    exit_code: int | None = None
    error_message: str | None = None
    final_metrics: dict[str, float] | None = None


Item: TypeAlias = Header | Point | Line | Params | End


@dataclass
class Tally:
    """Counts the items of a run: those read, and those skipped, by reason.

    One point is one value of one metric at one step.
    """

    taken: Counter[Counted] = field(default_factory=Counter)
    skipped: dict[Counted, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in COUNTED})
    notes: list[str] = field(default_factory=list)
    """Sentences about values that were shortened."""
    problems: list[str] = field(default_factory=list)
    """Files that could be read only in part, with the reasons."""

    read_bytes: int = 0
    share: Callable[[], float | None] = lambda: None
    """Returns how much of the run is read, from 0 to 1, where that is known."""

    def skip(self, kind: Counted, reason: str, count: int = 1) -> None:
        """Count items that are not imported."""
        if count:
            self.skipped[kind][reason] += count

    def named(self, values: dict[str, float]) -> dict[str, float]:
        """Return the values whose names can be stored; count the others."""
        if not values or max(map(len, values)) <= MAX_METRIC_NAME_CHARS:
            return values
        kept = {name: value for name, value in values.items() if len(name) <= MAX_METRIC_NAME_CHARS}
        self.skip("points", LONG_NAME, len(values) - len(kept))
        return kept

    def fits(self, text: str) -> bool:
        """Return whether a line can be stored; count it if it is too long."""
        if len(text) > MOST_CHARS:
            self.skip("lines", LONG_TEXT)
        return len(text) <= MOST_CHARS

    def fail(self, problem: str) -> None:
        """Count a file of which the rest cannot be read."""
        self.skip("files", DAMAGED)
        self.problems.append(problem)


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """One run to import.

    `identity` identifies the run and its content. It is the same at each import, so a second import makes the same
    messages with the same numbers, which are not stored twice. `items` reads the run, from the header to the end.
    """

    tool: str
    identity: str
    name: str
    items: Callable[[Tally], Iterator[Item]]

    @property
    def job_id(self) -> int:
        """The number of its job, which is computed from the identity: the same at each import."""
        return number_of(f"import {self.tool} {self.identity}")

    @property
    def source(self) -> str:
        """The source name of its messages: the same at each import of the same run."""
        digest = hashlib.blake2b(self.identity.encode(errors="surrogatepass"), digest_size=6).hexdigest()
        return f"{IMPORT_SOURCE}{self.tool}-{digest}"


@dataclass(frozen=True)
class LeftOut:
    """A run that is not imported, with the reason; with `is_failure` the import is not complete."""

    name: str
    reason: str
    is_failure: bool = False


def unreadable(path: Path, error: OSError) -> LeftOut:
    """Return a file that cannot be read."""
    return LeftOut(str(path), f"the file cannot be read: {error.strerror or error}", is_failure=True)


def files_below(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the files in a folder and below whose names are wanted, also those that cannot be read.

    Named pipes, which have no end, are left out. Raises `Problem` for a folder that cannot be read.
    """
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        for path in (Path(place, name) for name in sorted(names) if is_wanted(name)):
            if _may_be_file(path):
                yield path


def _may_be_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # such as a broken link: the reader reports it
        return True


def _raise(error: OSError) -> None:
    raise Problem(f"cannot read {error.filename}: {error.strerror}") from error


def content_hash(path: Path, size: int | None = None) -> str:
    """Return a hash of the first `size` bytes of a file, or of all; raises `OSError`."""
    digest = hashlib.blake2b(digest_size=16)
    left = size
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
            digest.update(chunk)
            left = None if left is None else left - len(chunk)
    return digest.hexdigest()
