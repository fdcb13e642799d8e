"""Tools that read a job's log."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from trainwire.cli.mcp_tools.answers import MOST_CHARS, Answer, JobReference, MaxChars, shown_line
from trainwire.client.client import Client
from trainwire.client.errors import ClientError
from trainwire.client.job import Job
from trainwire.schemas.events import LogLine
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID

SEARCH_S: Final = 20.0
"""Seconds after which a search ends, with the lines found so far and the position from which to continue."""
Seq = Annotated[int, Field(ge=0, le=MAX_ID)]
Rank = Annotated[int | None, Field(ge=0, le=MAX_ATTEMPT, description="Only lines of this rank.")]
Attempt = Annotated[int | None, Field(ge=0, le=MAX_ATTEMPT, description="Only lines of this attempt.")]
Stream = Annotated[Literal["stdout", "stderr"] | None, Field(description="Only lines of this output stream.")]
Lines = Annotated[int, Field(ge=0, le=1000)]


def search_log(
    client: Client,
    *,
    job: JobReference,
    text: Annotated[str, Field(description="Only lines that contain this, ignoring case; empty: all lines.")] = "",
    stream: Stream = None,
    level: Annotated[str, Field(description="Only lines of this level, such as ERROR; empty: all.")] = "",
    rank: Rank = None,
    attempt: Attempt = None,
    after_seq: Annotated[Seq | None, Field(description="The first matching lines after this `seq`.")] = None,
    before_seq: Annotated[Seq | None, Field(description="The last matching lines before this `seq`.")] = None,
    limit: Annotated[int, Field(ge=1, le=1000, description="Most lines.")] = 100,
    max_chars: MaxChars = 1000,
) -> dict[str, Any]:
    """Search a job's log: the newest matching lines, or with `after_seq` the first ones after it, in order.

    To read the whole log from its start, begin with after_seq=0 and go on with the after_seq in `left_out`.
    """
    if after_seq is not None and before_seq is not None:
        raise ClientError(f"after_seq={after_seq} and before_seq={before_seq}: give at most one of them")
    found = client.job(job)
    answer = Answer(found, max_chars=max_chars)
    conditions = {
        "search": text or None,
        "level": level or None,
        "log_type": stream,
        "rank": rank,
        "attempt": attempt,
    }
    lines, following = _pages(found, after_seq, before_seq, limit, conditions, max_chars=max_chars)
    answer.add(lines_of_job=found.info.rows["logs"])
    answer.add(lines=[shown_line(line, found.info.attempt) for line in lines])
    if following is not None:
        direction, side = ("later", "after_seq") if after_seq is not None else ("earlier", "before_seq")
        answer.leave_out(f"{direction} lines were not searched: repeat with {side}={following}")
    return answer.document()


def log_around(
    client: Client,
    *,
    job: JobReference,
    seq: Annotated[Seq | None, Field(description="The line to show, by its `seq`.")] = None,
    moment: Annotated[
        str, Field(description="Or a time: the first line of this time or later. RFC 3339; UTC without a zone.")
    ] = "",
    before: Annotated[Lines, Field(description="Lines before it.")] = 20,
    after: Annotated[Lines, Field(description="Lines after it.")] = 20,
    stream: Stream = None,
    rank: Rank = None,
    max_chars: MaxChars = 1000,
) -> dict[str, Any]:
    """Return the lines of a job's log around a line or a time, of all attempts and in the order of arrival."""
    if (seq is None) == (not moment):
        raise ClientError(f"seq={seq} and moment={moment!r}: give one of them")
    found = client.job(job)
    total = found.info.rows["logs"]
    place = found.seq_at(_parsed_time(moment)) if seq is None else seq
    if place is None:  # the log ends before
        place = total + 1
    answer = Answer(found, max_chars=max_chars)
    conditions = {"log_type": stream, "rank": rank}
    earlier: list[LogLine] = []
    following: int | None = None
    if before:
        earlier, following = _pages(found, None, place, before, conditions, max_chars=max_chars)
    later, rest = _pages(found, max(place - 1, 0), None, after + 1, conditions, max_chars=max_chars)
    answer.add(lines_of_job=total, at_seq=place)
    answer.add(lines=[shown_line(line, found.info.attempt) for line in [*earlier, *later]])
    if place > total:
        answer.leave_out(f"no line is at {moment or seq} or later: the last ones before are shown")
    if following is not None and len(earlier) < before:
        answer.leave_out(f"earlier lines were not searched: search_log(before_seq={following})")
    if rest is not None and len(later) <= after:
        answer.leave_out(f"later lines were not searched: search_log(after_seq={rest})")
    return answer.document()


def _pages(
    job: Job, after: int | None, before: int | None, limit: int, conditions: dict[str, Any], *, max_chars: int
) -> tuple[list[LogLine], int | None]:
    """Return up to `limit` lines in order that match `conditions`, and the `seq` from which a search can go on.

    This is the next `after` or `before`, in the same direction; None if all lines were searched. The search ends
    early after SEARCH_S seconds, and with the line with which the texts, shortened to `max_chars`, reach
    MOST_CHARS characters in total.
    """
    lines: list[LogLine] = []
    room = MOST_CHARS
    deadline = time.monotonic() + SEARCH_S
    while True:
        page = job.log_page(after=after, before=before, limit=limit - len(lines), **conditions)
        for number, line in enumerate(page.lines if after is not None else reversed(page.lines), 1):
            lines.append(line)
            room -= min(len(line.text), max_chars)
            if room <= 0:
                following = page.next if number == len(page.lines) else line.seq
                return _in_order(lines), following
        if page.next is None or len(lines) >= limit or time.monotonic() > deadline:
            return _in_order(lines), page.next
        after, before = (page.next, None) if after is not None else (None, page.next)


def _in_order(lines: list[LogLine]) -> list[LogLine]:
    return sorted(lines, key=lambda line: line.seq)


def _parsed_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise ClientError(f"moment={text!r} is no time: write for example 2026-11-30T14:03:00Z") from exc
