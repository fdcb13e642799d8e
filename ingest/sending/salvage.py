"""Saves what can be sent of a body that cannot: one bad line, point or field takes nothing else with it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from trainwire.ingest.sanitize import StructT, repaired
from trainwire.schemas.messages import Body, Logs, Metrics


def salvaged(body: Body) -> tuple[Body | None, int]:
    """Return `body`, repaired and without the lines, points or fields that have no form, and their number."""
    whole = _sendable(body)
    if whole is not None:
        return whole, 0
    if isinstance(body, Logs):
        return _salvaged_logs(body)
    if isinstance(body, Metrics):
        return _salvaged_metrics(body)
    kept, lost = _salvaged_fields(body)
    return (None, 1) if kept is None else (kept, lost)


def item_count(body: Body) -> int:
    """Return how many lines or points a body has, or 1 where it has none."""
    items = body.lines if isinstance(body, Logs) else body.points if isinstance(body, Metrics) else []
    return max(1, len(items))


def _salvaged_logs(body: Logs) -> tuple[Logs | None, int]:
    levels = body.levels or [None] * len(body.lines)
    alone = [
        _sendable(replace(body, lines=[line], ts=[ts], levels=[level]))
        for line, ts, level in zip(body.lines, body.ts, levels, strict=True)
    ]
    kept = [one for one in alone if one is not None]
    if not kept:
        return None, len(alone)
    known = [(one.levels or [None])[0] for one in kept]
    joined = replace(
        kept[0],
        lines=[one.lines[0] for one in kept],
        ts=[one.ts[0] for one in kept],
        levels=known if any(known) else None,
    )
    return joined, len(alone) - len(kept)


def _salvaged_metrics(body: Metrics) -> tuple[Metrics | None, int]:
    points = [point for point in map(_sendable, body.points) if point is not None]
    header, lost = _salvaged_fields(replace(body, points=[]))
    lost += len(body.points) - len(points)
    nothing = Metrics(rank=body.rank, started_at=body.started_at)
    kept = replace(nothing) if header is None else header
    kept.points = points
    return (None if kept == nothing else kept), lost


def _salvaged_fields(body: StructT) -> tuple[StructT | None, int]:
    """Return `body` without the optional fields that cannot be sent, and their number."""
    fields = msgspec.structs.fields(type(body))
    needed = {field.name: getattr(body, field.name) for field in fields if field.required}
    kept: dict[str, Any] = {}
    lost = 0
    for name in (field.name for field in fields if not field.required):
        alone = _sendable(type(body)(**needed, **{name: getattr(body, name)}))
        if alone is None:
            lost += 1
        else:
            kept[name] = getattr(alone, name)
    return _sendable(type(body)(**needed, **kept)), lost


def _sendable(part: StructT) -> StructT | None:
    """Return a body or a part of one with its text repaired, or None when it has no form on the wire."""
    try:
        fixed = repaired(part)
        msgspec.msgpack.encode(fixed)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever is wrong with what a trainer said, the rest is to be sent
        return None
    return fixed
