"""The state of a twin that survives stops and starts of its server, and its control by other processes."""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import msgspec

from tests.twins.loki_faults import Fault, Faults
from tests.twins.loki_store import Line, Store

NO_TENANT = "fake"  # Loki's name of the tenant of requests without X-Scope-OrgID

_decode_faults = msgspec.json.Decoder(list[Fault]).decode


class Core:
    """A twin's lines, its queued faults and its counts."""

    def __init__(self, store: Store, auth: tuple[str, str] | None) -> None:
        self.store = store
        self.faults = Faults()
        self.authorization = auth and "Basic " + base64.b64encode(":".join(auth).encode()).decode()
        self.lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    def stats(self) -> dict[str, Any]:
        """Return counts of connections, requests, pushes, queries, lines and statuses."""
        with self.lock, self.store.lock:
            return {
                "connections": self.requests["connections"],
                "requests": self.requests["requests"],
                "pushes": self.requests["push"],
                "queries": self.requests["query"],
                **msgspec.to_builtins(self.store.counts),
                "statuses": {str(status): count for status, count in self.statuses.items()},
            }

    def lines(self, job_id: int | str | None, tenant: str) -> list[Line]:
        """Return the stored lines of a job, or of all, by time; equal times in the order of arrival."""
        with self.store.lock:
            found = [
                Line(entry.ts_ns, entry.line, stream.pushed_labels, entry.metadata)
                for stream in self.store.streams(tenant)
                if job_id is None or stream.labels.get("job_id") == str(job_id)
                for entry in stream.entries
            ]
        return sorted(found, key=attrgetter("ts_ns"))


def control(core: Core, command: str, path: str, arguments: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    """Serve the paths under /twin/, which faults do not affect."""
    match command, path:
        case "POST", "/twin/faults":
            text = body if body.lstrip().startswith(b"[") else b"[" + body + b"]"
            core.faults.extend(_decode_faults(text))
            return 204, b""
        case "DELETE", "/twin/faults":
            core.faults.clear()
            return 204, b""
        case "GET", "/twin/stats":
            return 200, msgspec.json.encode(core.stats())
        case "GET", "/twin/entries":
            lines = core.lines(arguments.get("job_id"), arguments.get("tenant", NO_TENANT))
            return 200, msgspec.json.encode([line._asdict() for line in lines])
    return 404, b"no such control\n"
