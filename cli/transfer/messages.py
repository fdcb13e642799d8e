"""Cuts the items of a run into numbered messages: always the same ones for the same items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from trainwire.cli.transfer.runs import End, Header, Item, Line, Params, SourceRun, Tally
from trainwire.ingest.sending.size_limits import fitted
from trainwire.schemas.keys import Kind
from trainwire.schemas.messages import KIND_OF_BODY, Body, Completion, Logs, Message, Metrics, Point

# A second import finds what is stored by the numbers of the messages. Other sizes would give the same numbers to
# other contents: changing one of these needs another name of the source (`SourceRun.source`).
MESSAGE_POINTS: Final = 1000
MESSAGE_VALUES: Final = 10_000
MESSAGE_LINES: Final = 500
MESSAGE_CHARS: Final = 1_000_000
ATTEMPT: Final = 1


def messages_of(run: SourceRun, tally: Tally) -> Iterator[Message]:
    """Yield the messages of a run, numbered by kind; count its items in `tally`."""
    seqs: Counter[Kind] = Counter()
    for body in _bodies(run.items(tally), tally):
        kind = KIND_OF_BODY[type(body)]
        seqs[kind] += 1
        if isinstance(body, Completion):
            body.produced = {str(each): count for each, count in seqs.items()}
        yield Message(kind, run.job_id, ATTEMPT, run.source, seqs[kind], body)


def _bodies(items: Iterable[Item], tally: Tally) -> Iterator[Body]:
    points: list[Point] = []
    lines: list[Line] = []
    values = chars = 0
    started_at: int | None = None
    for item in items:
        if isinstance(item, Point):
            points.append(item)
            values += len(item.values)
            if len(points) >= MESSAGE_POINTS or values >= MESSAGE_VALUES:
                yield Metrics(points=points, started_at=started_at)
                tally.taken["points"] += values
                points, values = [], 0
        elif isinstance(item, Line):
            lines.append(item)
            chars += len(item.text)
            if len(lines) >= MESSAGE_LINES or chars >= MESSAGE_CHARS:
                yield _logs(lines, started_at)
                tally.taken["lines"] += len(lines)
                lines, chars = [], 0
        elif isinstance(item, Header):
            started_at = item.started_ns
            yield _about(item, tally)
        elif isinstance(item, Params):
            yield _fitted(Metrics(params=item.values, started_at=started_at), tally)
        else:
            if points:
                yield Metrics(points=points, started_at=started_at)
            if lines:
                yield _logs(lines, started_at)
            tally.taken["points"] += values
            tally.taken["lines"] += len(lines)
            yield _completion(item, started_at)


def _about(header: Header, tally: Tally) -> Body:
    about: dict[str, Any] = {"params": header.params, "mlflow_run_id": header.mlflow_run_id}
    body = Metrics(name=header.name, tags=header.tags, ts=header.started_ns, started_at=header.started_ns, **about)
    return _fitted(body, tally)


def _fitted(body: Body, tally: Tally) -> Body:
    body, cuts = fitted(body)
    tally.notes += cuts
    return body


def _logs(lines: list[Line], started_at: int | None) -> Logs:
    texts, times = [line.text for line in lines], [line.ts for line in lines]
    return Logs(log_type="stdout", lines=texts, ts=times, started_at=started_at)


def _completion(end: End, started_at: int | None) -> Completion:
    return Completion(
        ts=end.ts,
        status=end.status,
        exit_unknown=end.status == "ended",
        error_message=end.error_message,
        started_at=started_at,
    )
