"""A run of another tool as a sequence of items, and the counts of items that were read or skipped."""

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
from trainwire.schemas.wire.limits import MAX_LINE_CHARS, MAX_METRIC_NAME_CHARS
from trainwire.schemas.wire.messages import LogType, Outcome, Point
from trainwire.stack.errors import Problem

Counted = Literal["points", "lines", "files"]
COUNTED: Final[tuple[Counted, ...]] = ("points", "lines", "files")
IMPORT_SOURCE: Final = "import-"
"""Prefix of the source names of imported runs."""
MOST_CHARS: Final = MAX_LINE_CHARS // 4
"""Largest number of characters in a line; each may have up to four bytes."""
DAMAGED: Final = "read up to an error"
MIN_NS, MAX_NS = -(2**63), 2**63 - 1
"""Smallest and largest time in a message, in nanoseconds since 1970: the 64-bit range, the years 1677 to 2262."""
OUT_OF_RANGE: Final = "time is out of range"
LONG_NAME: Final = f"name over {MAX_METRIC_NAME_CHARS:,} characters"
LONG_TEXT: Final = f"text over {MOST_CHARS:,} characters"
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first item of an imported run: its name, start, tags and parameters.

    If workers deliver jobs to the MLflow server from which the run is imported, `mlflow_run_id` is the run's id
    there; otherwise it is None.
    """

    name: str
    started_ns: int | None
    tags: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] | None = None
    mlflow_run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a run's output, with its time in nanoseconds since 1970."""

    ts: int
    text: str
    log_type: LogType = "stdout"


@dataclass(frozen=True, slots=True)
class Params:
    """All parameters of a run that were read so far.

    Tools that record parameters later than the header need it.
    """

    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class End:
    """The last item of an imported run; the status is `ended` if the tool does not record how it ended."""

    ts: int
    status: Outcome = "ended"
    exit_code: int | None = None
    error_message: str | None = None
    final_metrics: dict[str, float] | None = None


Item: TypeAlias = Header | Point | Line | Params | End


@dataclass
class Tally:
    """Counts the items of an imported run that were read, and those that were skipped, by reason.

    A metric value counts as one point.
    """

    taken: Counter[Counted] = field(default_factory=Counter)
    skipped: dict[Counted, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in COUNTED})
    notes: list[str] = field(default_factory=list)
    """Sentences about values that were shortened, for the user."""
    problems: list[str] = field(default_factory=list)
    """Sentences about files that could be read only in part, with the reason."""

    read_bytes: int = 0
    share: Callable[[], float | None] = lambda: None
    """Function that returns the share of the run that has been read, from 0 to 1, or None if it is unknown."""

    def skip(self, kind: Counted, reason: str, count: int = 1) -> None:
        """Count `count` items of a kind as not imported, under the reason `reason`."""
        if count:
            self.skipped[kind][reason] += count

    def named(self, values: dict[str, float]) -> dict[str, float]:
        """Return the values whose names are short enough to be stored; count the others as skipped."""
        if not values or max(map(len, values)) <= MAX_METRIC_NAME_CHARS:
            return values
        kept = {name: value for name, value in values.items() if len(name) <= MAX_METRIC_NAME_CHARS}
        self.skip("points", LONG_NAME, len(values) - len(kept))
        return kept

    def fits(self, text: str) -> bool:
        """Return whether the text of a log line is short enough to be stored; if not, count it as skipped."""
        if len(text) > MOST_CHARS:
            self.skip("lines", LONG_TEXT)
        return len(text) <= MOST_CHARS

    def fail(self, problem: str) -> None:
        """Record that a file could not be read, or only in part; `problem` is the sentence for the report."""
        self.skip("files", DAMAGED)
        self.problems.append(problem)

    def fail_within(self, path: Path, error: Exception) -> None:
        """Record that a file could be read only up to an error."""
        self.fail(f"{path}: {error}; what comes before it is imported")


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """One run of another tool to import as a job.

    `identity` identifies the run and its content, and is the same at each import. A second import thus produces
    the same messages with the same numbers, which are not stored twice. `items` reads the run, from its header to
    its end.
    """

    tool: str
    identity: str
    name: str
    items: Callable[[Tally], Iterator[Item]]

    @property
    def job_id(self) -> int:
        """The number of the run's job, computed from `identity`; it is the same at each import."""
        return number_of(f"import {self.tool} {self.identity}")

    @property
    def source(self) -> str:
        """The source name of the run's messages; it is the same at each import."""
        digest = hashlib.blake2b(self.identity.encode(errors="surrogatepass"), digest_size=6).hexdigest()
        return f"{IMPORT_SOURCE}{self.tool}-{digest}"


@dataclass(frozen=True)
class LeftOut:
    """A run of another tool that is not imported, with the reason. If `is_failure`, the import is incomplete."""

    name: str
    reason: str
    is_failure: bool = False


class UnreadableRun(Exception):  # noqa: N818 - a state
    """The source cannot return this run; `items` raises it before the first item, so that nothing is sent."""


def unreadable(path: Path, error: OSError) -> LeftOut:
    """Return the `LeftOut` for a file that cannot be read."""
    return LeftOut(str(path), f"the file cannot be read: {error.strerror or error}", is_failure=True)


def files_below(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders whose names are wanted, including unreadable files.

    Each folder is sorted by name. Named pipes are left out, because they have no end. Raises `Problem` for a
    folder that cannot be read.
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
    """Return a hash of the first `size` bytes of a file, or of the whole file; raise `OSError`."""
    digest = hashlib.blake2b(digest_size=16)
    left = size
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
            digest.update(chunk)
            left = None if left is None else left - len(chunk)
    return digest.hexdigest()
