"""`trainwire verify --sink loki`: the lines that Loki has of a job are compared with its rows."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from trainwire.stores.loki.config import hidden_after, shown_config
from trainwire.stores.loki.http import LokiUnavailable, loki_http
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.base import SinkUnavailable
from trainwire.workers.sinks.loki.comparison import verify_loki
from trainwire.workers.sinks.plugin import Verdict

HIDDEN: Final = (
    "This Loki finds a line that came over {} late half an hour after its delivery: "
    "where those missing may be such, verify again before a replay"
)


def verify(settings: Settings, connection: Connection, job_id: int) -> Verdict:
    """Return where the job's lines differ from its rows. Raises `SinkUnavailable` where Loki cannot be read."""
    try:
        http = loki_http(settings)
        found = verify_loki(connection, http, job_id)
        age = hidden_after(shown_config(http) or "") if found.missing else None
    except LokiUnavailable as exc:
        raise SinkUnavailable(f"{exc}; LOKI_URL is {settings.loki_url}") from exc
    lines = [found.line, *found.differences, *([] if age is None else [HIDDEN.format(age)])]
    return Verdict(found.is_verified, lines, {**found.document, "hidden_after": age})
