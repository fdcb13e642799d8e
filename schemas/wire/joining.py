"""Joins the bodies of consecutive messages of a source, and splits them again (docs/decisions/0043).

The joined body is sent in one entry of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from msgspec.structs import replace

from trainwire.schemas.wire.limits import MAX_ITEMS
from trainwire.schemas.wire.messages import Body, Logs, Message, Metrics, Progress
from trainwire.schemas.wire.validation import InvalidMessage


def joined_body(first: Body, second: Body) -> Body | None:
    """Return one body with the lines or points of both; None if they cannot be joined.

    Bodies of log lines are joined if all their other fields are equal: lines of stdout and stderr are not joined.
    Bodies of points are joined if they have the same rank, start time and `resume_step`, and no other fields than
    points and progress. The result has at most `MAX_ITEMS` lines or points.
    """
    counts = item_count(first), item_count(second)
    if not all(counts) or sum(counts) > MAX_ITEMS:
        return None
    match first, second:
        case Logs(), Logs():
            return _joined_logs(first, second)
        case Metrics(), Metrics():
            return _joined_metrics(first, second)
    return None


def item_count(body: Body) -> int:
    """Return the number of lines or points in a body; 0 for other kinds."""
    return len(body.lines) if isinstance(body, Logs) else len(body.points) if isinstance(body, Metrics) else 0


def _joined_logs(first: Logs, second: Logs) -> Logs | None:
    rests = [replace(body, lines=[], ts=[], levels=None) for body in (first, second)]
    if rests[0] != rests[1]:
        return None
    levels = None
    if first.levels or second.levels:
        levels = [level for body in (first, second) for level in body.levels or [None] * len(body.lines)]
    return replace(first, lines=first.lines + second.lines, ts=first.ts + second.ts, levels=levels)


def _joined_metrics(first: Metrics, second: Metrics) -> Metrics | None:
    rests = [replace(body, points=[], progress=None) for body in (first, second)]
    nothing = Metrics(rank=first.rank, started_at=first.started_at, resume_step=first.resume_step)
    if rests != [nothing, nothing]:
        return None
    progress = _joined_progress(first.progress, second.progress)
    return replace(first, points=first.points + second.points, progress=progress)


def split(message: Message) -> Iterator[Message]:
    """Yield the messages that were joined into `message`, each with its number; the last one has the progress."""
    body = message.body
    for number, (begin, end) in enumerate(pairwise(accumulate(message.parts, initial=0)), message.first):
        part: Body = body
        if isinstance(body, Logs):
            levels = body.levels[begin:end] if body.levels else None
            part = replace(body, lines=body.lines[begin:end], ts=body.ts[begin:end], levels=levels)
        elif isinstance(body, Metrics):
            progress = body.progress if number == message.seq else None
            part = replace(body, points=body.points[begin:end], progress=progress)
        yield Message(message.kind, message.job_id, message.attempt, message.source, number, part)


def check_parts(seq: int, parts: Sequence[int], body: Body) -> None:
    """Raise `InvalidMessage` unless `parts` are the numbers of lines or points of the messages up to `seq`."""
    items = item_count(body)
    if not 2 <= len(parts) <= min(seq, MAX_ITEMS) or min(parts) < 1 or sum(parts) != items:
        raise InvalidMessage(
            "wrong-fields",
            f"parts of {len(parts)} messages do not match {items} lines or points of seq {seq}",
        )


def _joined_progress(first: Progress | None, second: Progress | None) -> Progress | None:
    """Return the newest value of each field."""
    if first is None or second is None:
        return second or first
    newest = {name: value for name in second.__struct_fields__ if (value := getattr(second, name)) is not None}
    return replace(first, **newest)
