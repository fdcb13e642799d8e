"""Converts the items of an imported run to numbered messages; the same items always become the same messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from trainwire.cli.transfer.runs import End, Header, Item, Line, Params, SourceRun, Tally
from trainwire.ingest.sending.size_limits import fitted
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.messages import KIND_OF_BODY, Body, Completion, Logs, Message, Metrics, Point

# A second import finds the stored messages by their numbers. Other sizes would give the same numbers to
# other contents: changing one of these needs another name of the source (`SourceRun.source`).
MESSAGE_POINTS: Final = 1000
MESSAGE_VALUES: Final = 10_000
MESSAGE_LINES: Final = 500
MESSAGE_CHARS: Final = 1_000_000
ATTEMPT: Final = 1


def messages_of(run: SourceRun, tally: Tally) -> Iterator[Message]:
    """Yield the messages of an imported run, numbered by kind; count the run's items in `tally`."""
    seqs: Counter[Kind] = Counter()
    for body in _bodies(run.items(tally), tally):
        kind = KIND_OF_BODY[type(body)]
        seqs[kind] += 1
        if isinstance(body, Completion):
            body.produced = {str(each): count for each, count in seqs.items()}
        yield Message(kind, run.job_id, ATTEMPT, run.source, seqs[kind], body)


class _Buffer:
    """Collects metric points and log lines of an imported run until they are enough for a message."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.started_at: int | None = None
        self._points: list[Point] = []
        self._values = 0
        self._lines: list[Line] = []
        self._chars = 0

    def add_point(self, point: Point) -> bool:
        """Add a point to the buffer; return whether the buffered points are enough for a full message."""
        self._points.append(point)
        self._values += len(point.values)
        return len(self._points) >= MESSAGE_POINTS or self._values >= MESSAGE_VALUES

    def must_cut(self, line: Line) -> bool:
        """Return whether `take_lines` must be called before `line` is added to the buffer.

        True if the buffer is full, or if its lines are of another log type (stdout or stderr).
        """
        is_full = len(self._lines) >= MESSAGE_LINES or self._chars >= MESSAGE_CHARS
        return bool(self._lines) and (is_full or self._lines[-1].log_type != line.log_type)

    def add_line(self, line: Line) -> None:
        """Append a log line to the buffered lines of the next `logs` message."""
        self._lines.append(line)
        self._chars += len(line.text)

    def take_points(self) -> Iterator[Body]:
        """Empty the buffered points; yield one `metrics` message with them, or nothing if there are none."""
        points, values, self._points, self._values = self._points, self._values, [], 0
        if points:
            yield Metrics(points=points, started_at=self.started_at)
        self._tally.taken["points"] += values

    def take_lines(self) -> Iterator[Body]:
        """Empty the buffered lines; yield one `logs` message with them, or nothing if there are none."""
        lines, self._lines, self._chars = self._lines, [], 0
        if lines:
            texts, times = [line.text for line in lines], [line.ts for line in lines]
            yield Logs(log_type=lines[0].log_type, lines=texts, ts=times, started_at=self.started_at)
        self._tally.taken["lines"] += len(lines)


def _bodies(items: Iterable[Item], tally: Tally) -> Iterator[Body]:
    buffer = _Buffer(tally)
    for item in items:
        if isinstance(item, Point):
            if buffer.add_point(item):
                yield from buffer.take_points()
        elif isinstance(item, Line):
            if buffer.must_cut(item):
                yield from buffer.take_lines()
            buffer.add_line(item)
        elif isinstance(item, Header):
            buffer.started_at = item.started_ns
            yield _about(item, tally)
        elif isinstance(item, Params):
            yield _fitted(Metrics(params=item.values, started_at=buffer.started_at), tally)
        else:
            yield from buffer.take_points()
            yield from buffer.take_lines()
            yield _fitted(_completion(item, buffer.started_at), tally)


def _about(header: Header, tally: Tally) -> Body:
    about: dict[str, Any] = {"params": header.params, "mlflow_run_id": header.mlflow_run_id}
    body = Metrics(name=header.name, tags=header.tags, ts=header.started_ns, started_at=header.started_ns, **about)
    return _fitted(body, tally)


def _fitted(body: Body, tally: Tally) -> Body:
    body, cuts = fitted(body)
    tally.notes += cuts
    return body


def _completion(end: End, started_at: int | None) -> Completion:
    return Completion(
        ts=end.ts,
        status=end.status,
        exit_code=end.exit_code,
        exit_unknown=end.status == "ended",
        final_metrics=end.final_metrics,
        error_message=end.error_message,
        started_at=started_at,
    )
