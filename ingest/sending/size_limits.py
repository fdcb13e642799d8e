"""Shortens, splits or leaves out values that exceed the limits of the wire format."""

from __future__ import annotations

import operator
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from trainwire.ingest.process.interruptions import raise_interruption
from trainwire.schemas.wire.limits import (
    MAX_FREE_BYTES,
    MAX_FREE_ELEMENTS,
    MAX_ITEMS,
    MAX_LEVEL_CHARS,
    MAX_LINE_CHARS,
    MAX_METRIC_NAME_CHARS,
    MAX_RESULTS,
    MAX_TEXT_CHARS,
    MAX_VALUES,
)
from trainwire.schemas.wire.messages import FREE_MAPS, Body, Logs, Metrics, Point
from trainwire.schemas.wire.validation import free_elements

SHORTENED_CHARS: Final = 1000
"""Number of characters to which a long text in params or tags is shortened."""
_MAPS: Final = ("metrics", "final_metrics", "best_metrics")


def fitted(body: Body) -> tuple[Body, list[str]]:
    """Reduce `body` to the limits of the wire format.

    Return it, and a description of each value shortened or left out, except for log levels that are cut.
    """
    cuts: list[str] = []
    changed: dict[str, Any] = {}
    for name in body.__struct_fields__:
        most = MAX_TEXT_CHARS.get(name)
        value = getattr(body, name)
        if most is not None and value is not None and len(value) > most:
            changed[name] = shortened(value, most)
            cuts.append(f"{name} of {len(value):,} characters is cut to {most:,}")
        elif name in _MAPS and value:
            changed[name] = _fitted_numbers(name, value, cuts)
    if isinstance(body, Metrics):
        for name in FREE_MAPS:
            if free := getattr(body, name):
                changed[name] = _fitted_free(name, free, cuts)
        if body.points:
            changed["points"] = _fitted_points(body.points, cuts)
    elif isinstance(body, Logs) and body.levels and _longest(body.levels) > MAX_LEVEL_CHARS:
        changed["levels"] = [level and level[:MAX_LEVEL_CHARS] for level in body.levels]
    changed = {name: value for name, value in changed.items() if value is not getattr(body, name)}
    return (replace(body, **changed) if changed else body), cuts


def _longest(levels: list[str | None]) -> int:
    return max(map(len, filter(None, levels)), default=0)


def shortened(text: str, most: int) -> str:
    """Return `text`, cut to a maximum of `most` characters; a cut text ends with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def line_pieces(text: str) -> list[str]:
    """Split a line into pieces that each fit into one message."""
    most = MAX_LINE_CHARS if text.isascii() else MAX_LINE_CHARS // 4
    return [text[start : start + most] for start in range(0, len(text), most)] or [text]


def _fitted_numbers(name: str, numbers: dict[str, float], cuts: list[str]) -> dict[str, float]:
    """Return the entries of `numbers` with names within the length limit.

    If there are too many entries, return only the newest.
    """
    kept = numbers
    if max(map(len, kept)) > MAX_METRIC_NAME_CHARS:
        kept = {key: value for key, value in kept.items() if len(key) <= MAX_METRIC_NAME_CHARS}
        cuts.append(
            f"{name}: {len(numbers) - len(kept):,} names over {MAX_METRIC_NAME_CHARS:,} characters left out"
        )
    most = MAX_RESULTS if name in _MAPS else MAX_ITEMS
    if len(kept) > most:
        cuts.append(f"{name}: the newest {most:,} of {len(kept):,} values are kept")
        kept = dict(islice(kept.items(), len(kept) - most, None))
    return kept


def _fitted_points(points: list[Point], cuts: list[str]) -> list[Point]:
    """Return `points` within the limits of the wire format.

    A point with more than `MAX_ITEMS` values is split into several points. Values above `MAX_VALUES` in total are
    left out.
    """
    fitting: list[Point] = []
    room = MAX_VALUES
    longest_path = MAX_TEXT_CHARS["checkpoint_path"]
    for point in points:
        path, values = point.checkpoint_path, point.values
        if path is not None and len(path) > longest_path:
            cuts.append(f"checkpoint_path of {len(path):,} characters is cut to {longest_path:,}")
            path = shortened(path, longest_path)
        if values and max(map(len, values)) > MAX_METRIC_NAME_CHARS:
            values = _fitted_numbers("values", dict(islice(values.items(), MAX_VALUES)), cuts)
        if len(values) > room:
            cuts.append(f"values: the first {room:,} of {len(values):,} are kept")
            values = dict(islice(values.items(), room))
        room -= len(values)
        if values is point.values and path is point.checkpoint_path and len(values) <= MAX_ITEMS:
            fitting.append(point)
            continue
        items = iter(values.items())
        while part := dict(islice(items, MAX_ITEMS)):
            fitting.append(replace(point, values=part, checkpoint_path=path))
    return points if all(map(operator.is_, fitting, points)) and len(fitting) == len(points) else fitting


def _fitted_free(field: str, values: dict[str, Any], cuts: list[str]) -> dict[str, Any]:
    """Return params or tags within the wire format's limits: shorten long texts, leave out the largest values."""
    sizes = {name: _size(name, value) for name, value in values.items()}
    bytes_left, elements_left = MAX_FREE_BYTES - 8, MAX_FREE_ELEMENTS - 1
    if (
        sum(size for size, _ in sizes.values()) <= bytes_left
        and sum(count for _, count in sizes.values()) <= elements_left
    ):
        return values
    kept: dict[str, Any] = {}
    for name in sorted(values, key=lambda name: sizes[name]):
        value, (size, count) = values[name], sizes[name]
        if size > bytes_left and isinstance(value, str) and len(value) > SHORTENED_CHARS:
            value = shortened(value, SHORTENED_CHARS)
            size, count = _size(name, value)
        if size > bytes_left or count > elements_left:
            cuts.append(f"{field}[{shortened(name, 100)!r}] is left out: {size:,} bytes, {count:,} elements")
            continue
        if value is not values[name]:
            cuts.append(f"{field}[{shortened(name, 100)!r}] is shortened to {SHORTENED_CHARS:,} characters")
        kept[name] = value
        bytes_left -= size
        elements_left -= count
    return {name: kept[name] for name in values if name in kept}


def _size(name: str, value: object) -> tuple[int, int]:
    """Return the number of bytes and of elements of one param or tag.

    A value that cannot be encoded counts as 0 bytes.
    """
    try:
        size = len(msgspec.msgpack.encode(value))
    except Exception as exc:  # noqa: BLE001 - it is left to `trainwire.ingest.sending.encoding`
        raise_interruption(exc)
        size = 0
    return size + 4 * len(name) + 5, 1 + free_elements(value)
