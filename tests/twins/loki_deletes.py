"""How a twin of Loki takes requests to delete lines: pkg/compactor/deletion/request_handler.go of Loki 3.

Loki hides the lines from queries soon after the request, and deletes them a day later; the twin deletes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from tests.twins.loki_query import BadQueryError, parse_selector
from tests.twins.loki_rules import SECOND_NS
from tests.twins.loki_store import Answer, Store

SECONDS_DIGITS = 10


class WrongRequestError(Exception):
    """A request that Loki answers with 400."""


def delete(store: Store, tenant: str, arguments: Mapping[str, str]) -> Answer:
    """Take a request to delete; answer as Loki does."""
    if refusal := _refusal(store):
        return refusal
    try:
        start_ns, end_ns = _range(arguments, store.now_ns())
        matchers = parse_selector(arguments["query"])
    except BadQueryError as error:
        return Answer(400, f"invalid query expression: {error}")
    except WrongRequestError as error:
        return Answer(400, str(error))
    with store.lock:
        store.deletes.append((tenant, arguments["query"]))
        for stream in store.streams(tenant):
            if all(matcher.matches(stream.labels) for matcher in matchers):
                stream.remove(start_ns, end_ns)
    return Answer(204)


def _range(arguments: Mapping[str, str], now_ns: int) -> tuple[int, int]:
    for name, words in (("query", "query not set"), ("start", "start time not set")):
        if not arguments.get(name):
            raise WrongRequestError(words)
    start_ns = _time(arguments["start"], "start")
    end_ns = _time(arguments["end"], "end") if arguments.get("end") else now_ns
    if end_ns > now_ns:
        raise WrongRequestError("deletes in the future are not allowed")
    if start_ns > end_ns:
        raise WrongRequestError("start time can't be greater than end time")
    return start_ns, end_ns


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
        raise WrongRequestError(f"invalid {name} time: require unix seconds or RFC3339 format")
    return int(at.timestamp()) * SECOND_NS
