"""Logs once when a Redis server stops answering, and once when it answers again."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

log = structlog.get_logger("trainwire.workers.streams.outage_log")


class OutageLog:
    """Logs which Redis servers have become unreachable or reachable again between two calls of `note`.

    `name` is the first part of the names of the log events.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: Mapping[str, str] = {}

    def note(self, unavailable: Mapping[str, str]) -> None:
        """Log which servers have stopped answering, and which answer again, since the last call.

        `unavailable` contains all servers that do not answer now (host:port -> reason).
        """
        for server in unavailable.keys() - self._known.keys():
            log.warning(f"{self._name}.server_away", server=server, reason=unavailable[server])
        for server in self._known.keys() - unavailable.keys():
            log.info(f"{self._name}.server_back", server=server)
        self._known = dict(unavailable)
