"""Which servers of the streams do not answer: said when that changes, not with each look."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

log = structlog.get_logger("trainwire.workers.streams.outage_log")


class AwayNotes:
    """Remembers, for one who looks again and again, who was away the last time."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._known: Mapping[str, str] = {}

    def note(self, away: Mapping[str, str]) -> None:
        """Log which servers (host:port -> why) are newly away, and which are back."""
        for server in away.keys() - self._known.keys():
            log.warning(f"{self._who}.server_away", server=server, reason=away[server])
        for server in self._known.keys() - away.keys():
            log.info(f"{self._who}.server_back", server=server)
        self._known = dict(away)
