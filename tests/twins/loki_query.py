"""How a twin of Loki answers `query_range`: labels and label filters, [start, end), one limit over all streams."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.twins.loki_rules import HOUR_NS, SECOND_NS, Labels, Limits, label_text, size
from tests.twins.loki_store import Entry, Stream

LEVEL = "detected_level"
LEVEL_FIELDS = ("level", "LEVEL", "Level", "Severity", "severity", "SEVERITY", "lvl", "LVL", "Lvl")
LEVEL_WORDS = (
    ("info", ("info", "INFO")),
    ("error", ("err:", "ERR:", "error", "ERROR")),
    ("warn", ("warn:", "WARN:", "warning", "WARNING")),
    ("critical", ("CRITICAL:", "critical:")),
    ("debug", ("debug:", "DEBUG:")),
)
MATCHER = re.compile(r'\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*"|`[^`]*`)\s*(,|$)')
NO_MATCHER = (
    "parse error : queries require at least one regexp or equality matcher that does not have an empty-compatible "
    'value. For instance, app=~".*" does not meet this requirement, but app=~".+" will'
)


BATCH_LINES = 128
SEARCH = re.compile(r"\.\*(\w+)")
"""A label filter that Loki evaluates as a substring search: unlike other filters it is not anchored."""


class BadQueryError(Exception):
    """A query that Loki answers with 400."""


class TooMuchError(Exception):
    """A query whose lines exceed one answer of Loki's ingester: a 500."""


@dataclass(frozen=True)
class Matcher:
    """One condition on one label."""

    name: str
    operator: str
    value: str

    def matches(self, labels: Labels) -> bool:
        """Return whether labels meet the condition; an absent label counts as an empty one."""
        found = labels.get(self.name, "")
        is_equal = bool(re.fullmatch(self.value, found)) if "~" in self.operator else found == self.value
        return is_equal != self.operator.startswith("!")


@dataclass(frozen=True)
class Filter(Matcher):
    """One condition behind the selector, on labels and structured metadata."""

    def matches(self, labels: Labels) -> bool:
        """Return whether labels meet the condition, as Loki makes it cheaper: `.*7` is there where a 7 is."""
        if "~" in self.operator and (searched := SEARCH.fullmatch(self.value)):
            return (searched[1] in labels.get(self.name, "")) != self.operator.startswith("!")
        return super().matches(labels)


@dataclass(frozen=True)
class RangeQuery:
    """The arguments of `query_range`."""

    matchers: tuple[Matcher, ...]
    filters: tuple[Filter, ...]
    start_ns: int
    end_ns: int
    limit: int
    is_forward: bool
    unwritten_from_ns: int
    """The time from which lines not yet written to the store are searched."""


def parse_query(arguments: Mapping[str, str], now_ns: int, limits: Limits) -> RangeQuery:
    """Read a query's arguments; raises BadQueryError with Loki's text."""
    end_ns = _time(arguments.get("end"), now_ns)
    start_ns = _time(arguments.get("start"), min(end_ns, now_ns) - HOUR_NS)
    _check_range(start_ns, end_ns, limits)
    limit = _limit(arguments.get("limit"), limits)
    direction = arguments.get("direction", "backward").lower()
    if direction not in {"forward", "backward"}:
        raise BadQueryError(f"invalid direction '{direction}'")
    matchers, filters = parse_log_query(arguments.get("query", ""))
    return RangeQuery(
        matchers, filters, start_ns, end_ns, limit, direction == "forward", now_ns - limits.unwritten_seen_ns
    )


def parse_log_query(text: str) -> tuple[tuple[Matcher, ...], tuple[Filter, ...]]:
    """Read a selector, and the label filters behind it; raises BadQueryError for any other pipeline."""
    selector, closed, pipeline = text.strip().partition("}")
    filters = []
    for part in pipeline.split("|")[1:]:
        found = MATCHER.fullmatch(part.strip())
        if not found:
            raise BadQueryError(f"parse error at line 1: syntax error: not a label filter: {part}")
        filters.append(Filter(found[1], found[2], _unquoted(found[3])))
    return parse_selector(selector + closed), tuple(filters)


def parse_selector(text: str) -> tuple[Matcher, ...]:
    """Read a label selector; raises BadQueryError."""
    if not (text.startswith("{") and text.endswith("}")):
        raise BadQueryError(f"parse error at line 1, col 1: syntax error: not a plain label selector: {text}")
    inner, matchers, position = text[1:-1].strip(), [], 0
    while position < len(inner):
        found = MATCHER.match(inner, position)
        if not found:
            raise BadQueryError(f"parse error at line 1, col {position + 2}: syntax error: unexpected {text}")
        matchers.append(Matcher(found[1], found[2], _unquoted(found[3])))
        position = found.end()
    if all(matcher.matches({}) for matcher in matchers):
        raise BadQueryError(NO_MATCHER)
    return tuple(matchers)


def run_query(query: RangeQuery, streams: Sequence[Stream], limits: Limits) -> dict[str, Any]:
    """Return Loki's answer: a result stream for each set of labels and structured metadata."""
    found = [
        (entry, stream.labels)
        for stream in streams
        if all(matcher.matches(stream.labels) for matcher in query.matchers)
        for entry in _entries(stream, query)
    ]
    found.sort(key=lambda pair: pair[0].ts_ns, reverse=not query.is_forward)
    _check_size([entry for entry, _ in found[: query.limit]], min(query.limit, BATCH_LINES), limits)
    results: dict[str, dict[str, Any]] = {}
    values: defaultdict[str, list[list[str]]] = defaultdict(list)
    for entry, labels in found[: query.limit]:
        result_labels = _result_labels(entry, labels, limits)
        text = label_text(result_labels)
        results.setdefault(text, {"stream": result_labels, "values": values[text]})
        values[text].append([str(entry.ts_ns), entry.line])
    ordered = [results[text] for text in sorted(results)]
    return {"status": "success", "data": {"resultType": "streams", "result": ordered, "stats": {}}}


def _entries(stream: Stream, query: RangeQuery) -> list[Entry]:
    hidden = stream.hidden(query.unwritten_from_ns)
    if not query.filters and not hidden:
        return stream.between(query.start_ns, query.end_ns, query.limit, is_forward=query.is_forward)
    return [
        entry
        for entry in stream.between(query.start_ns, query.end_ns, len(stream.entries), is_forward=True)
        if id(entry) not in hidden
        and all(condition.matches({**stream.labels, **entry.metadata}) for condition in query.filters)
    ]


def _check_size(entries: Sequence[Entry], batch_lines: int, limits: Limits) -> None:
    for first in range(0, len(entries), batch_lines):
        total = sum(size(entry.line) for entry in entries[first : first + batch_lines])
        if total > limits.max_answer_bytes:
            reason = f"trying to send message larger than max ({total} vs. {limits.max_answer_bytes})"
            raise TooMuchError(f"rpc error: code = ResourceExhausted desc = {reason}")


def _result_labels(entry: Entry, labels: Labels, limits: Limits) -> dict[str, str]:
    merged = {**labels, **entry.metadata}
    if limits.discovers_level and LEVEL not in merged:
        named = (merged[name] for name in LEVEL_FIELDS if name in merged)
        merged[LEVEL] = next(named, "").lower() or _level_of(entry.line)
    return merged


def _level_of(line: str) -> str:
    return next((level for level, words in LEVEL_WORDS if any(word in line for word in words)), "unknown")


def _check_range(start_ns: int, end_ns: int, limits: Limits) -> None:
    if end_ns < start_ns:
        raise BadQueryError("end timestamp must not be before or equal to start time")
    if (length := end_ns - start_ns) > limits.max_query_ns:
        hours, rest = divmod(length // SECOND_NS, 3600)
        took = f"{hours}h{rest // 60}m{rest % 60}s"
        raise BadQueryError(f"the query time range exceeds the limit (query length: {took}, limit: 30d1h)")


def _limit(text: str | None, limits: Limits) -> int:
    try:
        limit = int(text or 100)
    except ValueError as error:
        raise BadQueryError(f'strconv.Atoi: parsing "{text}": invalid syntax') from error
    if limit <= 0:
        raise BadQueryError("limit must be a positive value")
    if limit > limits.max_query_entries:
        raise BadQueryError(
            "max entries limit per query exceeded, limit > max_entries_limit_per_query "
            f"({limit} > {limits.max_query_entries})"
        )
    return limit


def _time(text: str | None, default_ns: int) -> int:
    if not text:
        return default_ns
    try:
        if text.isdecimal():
            return int(text) if len(text) > 10 else int(text) * SECOND_NS
        if re.fullmatch(r"\d+\.\d+", text):
            return round(float(text) * 1000) * 10**6
        return round(datetime.fromisoformat(text).timestamp() * 10**6) * 1000
    except ValueError as error:
        raise BadQueryError(f'could not parse "{text}" as a timestamp') from error


def _unquoted(text: str) -> str:
    return text[1:-1] if text[0] == "`" else re.sub(r"\\(.)", r"\1", text[1:-1])
