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


def _bodies(items: Iterable[Item], tally: Tally) -> Iterator[Body]:
    lines = _Lines(tally)
    points: list[Point] = []
    values = 0
    started_at = None
    for item in items:
        if isinstance(item, Point):  # first, and without a call: an import has millions
            points.append(item)
            values += len(item.values)
            if len(points) < MESSAGE_POINTS and values < MESSAGE_VALUES:
                continue
            yield Metrics(points=points, started_at=started_at)
            tally.taken["points"] += values
            points, values = [], 0
        elif isinstance(item, Line):
            if lines.must_cut(item):
                yield lines.take(started_at)
            lines.add(item)
        elif isinstance(item, Header):
            started_at = item.started_ns
            yield _about(item, tally)
        elif isinstance(item, Params):
            yield _fitted(Metrics(params=item.values, started_at=started_at), tally)
        else:
            if points:
                yield Metrics(points=points, started_at=started_at)
                tally.taken["points"] += values
                points, values = [], 0
            if lines:
                yield lines.take(started_at)
            yield _fitted(_completion(item, started_at), tally)


class _Lines:
    """Collects log lines of an imported run until they are enough for a message."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._lines: list[Line] = []
        self._chars = 0

    def __len__(self) -> int:
        return len(self._lines)

    def must_cut(self, line: Line) -> bool:
        """Return whether `take` must be called before `line` is added.

        True if the lines are enough for a message, or if they are of another log type (stdout or stderr).
        """
        is_full = len(self._lines) >= MESSAGE_LINES or self._chars >= MESSAGE_CHARS
        return bool(self._lines) and (is_full or self._lines[-1].log_type != line.log_type)

    def add(self, line: Line) -> None:
        """Append a line to those of the next message."""
        self._lines.append(line)
        self._chars += len(line.text)

    def take(self, started_at: int | None) -> Logs:
        """Return a message with the lines, of which there must be at least one, and remove them."""
        lines, self._lines, self._chars = self._lines, [], 0
        self._tally.taken["lines"] += len(lines)
        texts, times = [line.text for line in lines], [line.ts for line in lines]
        return Logs(log_type=lines[0].log_type, lines=texts, ts=times, started_at=started_at)


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
