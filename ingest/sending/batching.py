"""How lines and points become message bodies: in order, and bounded in count and size."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from trainwire.ingest.sending.size_limits import line_pieces
from trainwire.schemas.messages import Body, Checkpoint, Completion, Logs, Metrics, Point, Progress

LogType: TypeAlias = Literal["stdout", "stderr"]

MAX_ITEMS: Final = 1000
MAX_BATCH_BYTES: Final = 256 * 1024
"""A single line or point may be larger: then it travels alone."""

LONGEST_WHOLE_BYTES: Final = 4 * 1024 * 1024
"""A longer line may be more than a message can carry."""

LINE_OVERHEAD_BYTES: Final = 150
POINT_BYTES: Final = 300
VALUE_BYTES: Final = 100
HEADER_BYTES: Final = 1000
CHECKPOINT_BYTES: Final = 1000
COMPLETION_BYTES: Final = 1000


class Line(NamedTuple):
    """One line of output, as it was said."""

    log_type: LogType
    level: str | None
    ts: int
    text: str


MetricItem: TypeAlias = Point | Metrics
"""A point, or a `Metrics` without points that carries progress, name, params or tags."""


class Waiting:
    """What was said and has no number yet."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.metrics: list[MetricItem] = []
        self.checkpoints: list[Checkpoint] = []
        self.completion: Completion | None = None

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is here."""
        return not (self.lines or self.metrics or self.checkpoints or self.completion)

    def bodies(self, rank: int | None) -> Iterator[tuple[Body, int]]:
        """Yield the bodies of everything here with the bytes they were made of, the completion last."""
        yield from log_bodies(self.lines, rank)
        yield from metric_bodies(self.metrics, rank)
        for checkpoint in self.checkpoints:
            yield checkpoint, CHECKPOINT_BYTES
        if self.completion is not None:
            yield self.completion, COMPLETION_BYTES


def line_bytes(text: str) -> int:
    """Return about how much memory a line takes while it waits."""
    return sys.getsizeof(text) + LINE_OVERHEAD_BYTES


def lines_bytes(texts: Sequence[str]) -> int:
    """Return about how much memory lines take while they wait."""
    return sum(map(sys.getsizeof, texts)) + LINE_OVERHEAD_BYTES * len(texts)


def metric_bytes(item: MetricItem) -> int:
    """Return about how much memory a point or a header takes while it waits."""
    if isinstance(item, Point):
        return POINT_BYTES + VALUE_BYTES * len(item.values)
    return HEADER_BYTES


def log_bodies(lines: Iterable[Line], rank: int | None) -> Iterator[tuple[Logs, int]]:
    """Yield bodies with the bytes they were made of.

    A change between stdout and stderr starts a new body: seq then keeps the order in which the lines were said.
    """
    batch: list[Line] = []
    size = 0
    for line in lines:
        cost = line_bytes(line.text)
        is_full = len(batch) >= MAX_ITEMS or size + cost > MAX_BATCH_BYTES
        if batch and (is_full or line.log_type != batch[0].log_type):
            yield _logs(batch, rank), size
            batch, size = [], 0
        if cost > LONGEST_WHOLE_BYTES and len(pieces := line_pieces(line.text)) > 1:
            for number, piece in enumerate(pieces):
                part = line._replace(text=piece, ts=line.ts + number)
                yield _logs([part], rank), 0 if number else cost
            continue
        batch.append(line)
        size += cost
    if batch:
        yield _logs(batch, rank), size


def metric_bodies(items: Iterable[MetricItem], rank: int | None) -> Iterator[tuple[Metrics, int]]:
    """Yield bodies with the bytes they were made of; headers that fall into one body are merged."""
    body, size = Metrics(rank=rank), 0
    for item in items:
        cost = metric_bytes(item)
        if size and (len(body.points) >= MAX_ITEMS or size + cost > MAX_BATCH_BYTES):
            yield body, size
            body, size = Metrics(rank=rank), 0
        size += cost
        if isinstance(item, Point):
            body.points.append(item)
        else:
            _merge(body, item)
    if size:
        yield body, size


def _logs(batch: list[Line], rank: int | None) -> Logs:
    levels = [line.level for line in batch]
    return Logs(
        log_type=batch[0].log_type,
        lines=[line.text for line in batch],
        ts=[line.ts for line in batch],
        levels=levels if any(levels) else None,
        rank=rank,
    )


def _merge(body: Metrics, header: Metrics) -> None:
    for name in ("ts", "name", "params", "tags", "mlflow_run_id", "world_size", "launcher", "heartbeat_s"):
        if getattr(header, name) is not None:
            setattr(body, name, getattr(header, name))
    if header.provenance is not None:
        body.provenance = {**(body.provenance or {}), **header.provenance}
    if header.progress is None:
        return
    known: dict[str, Any] = msgspec.structs.asdict(body.progress) if body.progress else {}
    said = {name: value for name, value in msgspec.structs.asdict(header.progress).items() if value is not None}
    body.progress = Progress(**{**known, **said})
