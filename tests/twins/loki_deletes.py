"""How a twin of Loki takes requests to delete lines: pkg/compactor/deletion/request_handler.go of Loki 3.

Loki hides the lines from queries once it has read the request, and deletes them a day later; the twin deletes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from tests.twins.loki_query import BadQueryError, parse_selector
from tests.twins.loki_rules import SECOND_NS
from tests.twins.loki_store import Answer, Store

SECONDS_DIGITS = 10


class WrongTimeError(Exception):
    """A time that Loki answers with 400."""


def delete(store: Store, tenant: str, arguments: Mapping[str, str]) -> Answer:
    """Take a request to delete; answer as Loki does."""
    if refusal := _refusal(store):
        return refusal
    if not arguments.get("query"):
        return Answer(400, "query not set")
    if not arguments.get("start"):
        return Answer(400, "start time not set")
    try:
        matchers = parse_selector(arguments["query"])
        start_ns = _time(arguments["start"], "start")
        end_ns = _time(arguments["end"], "end") if arguments.get("end") else store.now_ns()
    except BadQueryError as error:
        return Answer(400, f"invalid query expression: {error}")
    except WrongTimeError as error:
        return Answer(400, str(error))
    if end_ns > store.now_ns():
        return Answer(400, "deletes in the future are not allowed")
    if start_ns > end_ns:
        return Answer(400, "start time can't be greater than end time")
    with store.lock:
        store.deletes.append((tenant, arguments["query"]))
        for stream in store.streams(tenant):
            if all(matcher.matches(stream.labels) for matcher in matchers):
                stream.remove(start_ns, end_ns)
    return Answer(204)


def list_deletes(store: Store, tenant: str) -> Answer:
    """List the requests of a tenant."""
    found = [{"query": query, "status": "received"} for owner, query in store.deletes if owner == tenant]
    return _refusal(store) or Answer(200, msgspec.json.encode(found).decode())


def _refusal(store: Store) -> Answer | None:
    match store.limits.deletion:
        case "off":
            return Answer(404, "404 page not found")
        case "disabled":
            return Answer(403, "deletion is not available for this tenant")
    return None


def _time(text: str, name: str) -> int:
    """Read seconds in ten digits, or RFC 3339."""
    if len(text) == SECONDS_DIGITS and text.isdecimal():
        return int(text) * SECOND_NS
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise WrongTimeError(f"invalid {name} time: require unix seconds or RFC3339 format")
    return int(at.timestamp()) * SECOND_NS
