"""Logs which stream servers stop and start to answer, once per change."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

log = structlog.get_logger("trainwire.workers.streams.outage_log")


class OutageLog:
    """Logs changes between calls of `note`; `name` is the first part of its log events."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: Mapping[str, str] = {}

    def note(self, away: Mapping[str, str]) -> None:
        """Log servers (host:port -> reason) that newly do not answer, and servers that answer again."""
        for server in away.keys() - self._known.keys():
            log.warning(f"{self._name}.server_away", server=server, reason=away[server])
        for server in self._known.keys() - away.keys():
            log.info(f"{self._name}.server_back", server=server)
        self._known = dict(away)
