"""Loki as the workers use it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from msgspec.structs import replace
from sqlalchemy import Connection

from trainwire.stores.loki.config import MAX_AGE_NS
from trainwire.stores.loki.deletion import LokiKeepsLines, request_deletion
from trainwire.stores.loki.http import LokiUnavailable, loki_http
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.workers.findings import Finding
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.backlog import SinkBacklog
from trainwire.workers.sinks.base import Sink, SinkUnavailable
from trainwire.workers.sinks.cursors import read_cursors
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.examination import examine
from trainwire.workers.sinks.loki.sink import LokiSink
from trainwire.workers.sinks.loki.verification import verify
from trainwire.workers.sinks.plugin import NotSetUp, SinkPlugin, Verdict


class LokiPlugin(SinkPlugin):
    """Lines of log rows, pushed over HTTP."""

    def is_on(self, settings: Settings) -> bool:
        """Tell whether LOKI_ENABLED is true."""
        return settings.loki_enabled

    def connect(self, resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return the log rows that wait, and the connections of this process to Loki."""
        return LogBacklog(resources.engine, LokiSink.name), LokiSink(loki_http(resources.settings))

    def linger_s(self, settings: Settings) -> float:
        """Return LOKI_LINGER_S."""
        return settings.loki_linger_s

    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Request the deletion of the lines; wait while some lie in the future, which Loki does not delete."""
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
        return replace(part, state="requested", deleted=part.planned).noted(LATER)

    def examine(self, settings: Settings) -> Iterator[Finding]:
        """Yield whether Loki is ready, and which of its limits refuse our lines."""
        return examine(settings)

    def verify(self, settings: Settings, connection: Connection, job_id: int) -> Verdict:
        """Compare each line in Loki with its row."""
        return verify(settings, connection, job_id)


LATER: Final = (
    "Loki hides the lines within minutes and deletes them after delete_request_cancel_period (default 24 h)"
)
PLUGIN: Final = LokiPlugin()
