"""Connects the workers to Loki: delivery, deletion, checks and comparison of log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from msgspec.structs import replace
from sqlalchemy import Connection

from trainwire.stores.loki.config import MAX_AGE_NS, hidden_after, setting, shown_config
from trainwire.stores.loki.http import LokiHttp, LokiUnavailable, loki_http, message_of, unavailable
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.workers.findings import Finding, Findings, Part
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.base import Sink, SinkUnavailable
from trainwire.workers.sinks.cursors import read_cursors
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.comparison import verify_loki
from trainwire.workers.sinks.loki.sink import LokiSink
from trainwire.workers.sinks.plugin import NotSetUp, SinkBacklog, SinkPlugin, SinkVerification

LOKI: Final = Part("loki")
LIMITS: Final = {
    "allow_structured_metadata": (
        "false",
        "allow_structured_metadata: true (and schema v13), or every push is refused",
    ),
    "unordered_writes": ("false", "unordered_writes: true, or lines of several ranks are refused"),
}
"""Settings in Loki's `limits_config`: for each, the value with which Loki refuses our lines, and the remedy."""

DELETE_PATH: Final = "/loki/api/v1/delete"
_DELETE_ACCEPTED: Final = 204
_DELETE_REFUSED: Final = {400, 403, 404, 405}
"""Statuses that mean that Loki does not accept deletions. 405: some proxies allow only reads of the path."""
_DELETE_REMEDY: Final = (
    "switch its delete API on (compactor: retention_enabled: true and delete_request_store, limits_config: "
    "deletion_mode: filter-and-delete)"
)
_DELETED_LATER: Final = (
    "Loki hides the lines within minutes and deletes them after delete_request_cancel_period (default 24 h)"
)
_HIDDEN: Final = (
    "This Loki finds a line that came over {} late half an hour after its delivery: "
    "where those missing may be such, verify again before a replay"
)


class LokiKeepsLines(Exception):  # noqa: N818 - shown to users
    """Loki is reachable, but does not accept requests to delete lines."""


class LokiPlugin(SinkPlugin):
    """The sink that pushes log rows to Loki over HTTP."""

    def is_on(self, settings: Settings) -> bool:
        """Return whether the setting LOKI_ENABLED switches Loki on."""
        return settings.loki_enabled

    def connect(self, resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return the object that reads log rows for Loki, and the sink with this process's connections to Loki."""
        return LogBacklog(resources.engine, LokiSink.name), LokiSink(loki_http(resources.settings))

    def linger_s(self, settings: Settings) -> float:
        """Return how many seconds a delivery waits for more rows before it begins (LOKI_LINGER_S)."""
        return settings.loki_linger_s

    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Request that Loki deletes the lines of the job.

        Raises `NotSetUp` if Loki is switched off here, and `SinkUnavailable` if it does not answer, but may have
        lines of the job, or while the newest line's time is in the future: Loki deletes only lines of the past.
        """
        if not resources.settings.loki_enabled:
            if part.planned:
                raise NotSetUp("LOKI_ENABLED is false here")
            return replace(part, state="done")
        with resources.engine.begin() as connection:
            cursor = read_cursors(connection, LokiSink.name, [deletion.job_id])[deletion.job_id]
        newest_ns = max(cursor.state.values(), default=0)
        if newest_ns >= time.time_ns():
            at = f"{datetime.fromtimestamp(newest_ns // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
            raise SinkUnavailable(f"Loki deletes lines of the past only, and the newest one is of {at}")
        start_ns = int(deletion.job_created_at.timestamp()) * 10**9 - MAX_AGE_NS
        try:
            request_deletion(loki_http(resources.settings), deletion.job_id, start_ns)
        except LokiKeepsLines as exc:
            return replace(part, state="left" if part.planned else "done").noted(str(exc))
        except LokiUnavailable as exc:
            if part.planned:
                raise SinkUnavailable(str(exc)) from exc
            return replace(part, state="done").noted(f"{exc}; it has confirmed no line of this job")
        return replace(part, state="requested", deleted=part.planned).noted(_DELETED_LATER)

    def examine(self, settings: Settings) -> Iterator[Finding]:
        """Yield findings about whether Loki is ready, and about its limits that would refuse our lines."""
        http = loki_http(settings)
        remedy = "start it, correct LOKI_URL, or set LOKI_ENABLED=false; until then log rows wait in Postgres"
        try:
            ready = http.get("/ready", {})
            if ready.status != 200:
                yield LOKI.warning("ready", f"is not ready: {ready.status} {message_of(ready)[:200]}", remedy)
                return
            yield LOKI.ok("ready", "is ready")
            config = shown_config(http)
        except LokiUnavailable as exc:
            yield LOKI.error("ready", str(exc), remedy)
            return
        if config is None:
            yield LOKI.ok("limits", "does not show its limits")
        else:
            yield from _limits(config)
            yield _late_lines(config)

    def verify(self, settings: Settings, connection: Connection, job_id: int) -> SinkVerification:
        """Compare the lines of the job in Loki with its rows. Raises `SinkUnavailable` if Loki does not answer."""
        try:
            http = loki_http(settings)
            found = verify_loki(connection, http, job_id)
            age = hidden_after(shown_config(http) or "") if found.missing else None
        except LokiUnavailable as exc:
            raise SinkUnavailable(f"{exc}; LOKI_URL is {settings.loki_url}") from exc
        lines = [found.line, *found.differences, *([] if age is None else [_HIDDEN.format(age)])]
        return SinkVerification(found.is_verified, lines, {**found.document, "hidden_after": age})


def request_deletion(http: LokiHttp, job_id: int, start_ns: int) -> None:
    """Request the deletion of all lines of a job from `start_ns` (nanoseconds since 1970) until now.

    Loki's compactor executes it later: queries omit the lines within minutes, and the chunks are rewritten after
    `delete_request_cancel_period`, a day by default. Raises `LokiKeepsLines` if Loki does not accept deletions,
    and `LokiUnavailable` if it does not answer.
    """
    # Loki parses seconds of ten digits only, and refuses an end in the future.
    start_s = min(max(start_ns // 10**9, 10**9), int(time.time()) - 1)
    query = f'{{job="training", job_id="{job_id}"}}'
    answer = http.post_empty(DELETE_PATH, {"query": query, "start": str(start_s)})
    if answer.status == _DELETE_ACCEPTED:
        return
    if answer.status in _DELETE_REFUSED:
        raise LokiKeepsLines(f"Loki answered {answer.status} ({message_of(answer)[:200]}): {_DELETE_REMEDY}")
    raise unavailable(answer)


def _limits(config: str) -> Findings:
    bad = False
    for name, (value, remedy) in LIMITS.items():
        if setting(config, name) == value:
            bad = True
            yield LOKI.error("limits", f"{name} is {value}", f"in its limits_config: {remedy}")
    if not bad:
        yield LOKI.ok("limits", "its limits let our lines in")


def _late_lines(config: str) -> Finding:
    age = hidden_after(config)
    if age is None:
        return LOKI.ok("late-lines", "finds late lines at once")
    delay = f"lines that come over {age} late are found half an hour after their delivery"
    if setting(config, "object_store") != "filesystem":
        return LOKI.ok("late-lines", f"{delay}: wait so long before `trainwire verify` or `replay` of such a job")
    return LOKI.warning(
        "late-lines", delay, "in its configuration: ingester: query_store_max_look_back_period: -1ns"
    )


PLUGIN: Final = LokiPlugin()
