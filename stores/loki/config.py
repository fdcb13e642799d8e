"""Loki's configuration: limits that it has by default, what it shows of it, and what follows from that."""

from __future__ import annotations

import re
from typing import Final

from trainwire.stores.loki.http import LokiHttp

OK: Final = 200
NO_LIMIT: Final = "0s"
MAX_AGE_NS: Final = 7 * 24 * 3600 * 10**9
"""Loki's `reject_old_samples_max_age` by default: it takes nothing older."""
MAX_FUTURE_NS: Final = 600 * 10**9
"""Loki's `creation_grace_period` by default: nor what is more ahead of its clock."""
MAX_AHEAD_NS: Final = 300 * 10**9
"""How far a line's time may be ahead of the time at which Postgres stored it; a line further ahead is sent with
this limit as its time (`trainwire.workers.sinks.loki.backlog`). The rest of the grace period is for clocks of
ours that differ."""


def shown_config(http: LokiHttp) -> str | None:
    """Return Loki's configuration as YAML; None where a proxy or the tenant's rights keep it back.

    Raises `LokiUnavailable`.
    """
    answer = http.get("/config", {})
    return answer.data.decode(errors="replace") if answer.status == OK else None


def setting(config: str, name: str) -> str | None:
    """Return the first value of that name, None where there is none."""
    found = re.search(rf"^[\s-]*{name}: *(\S+)", config, flags=re.MULTILINE)
    return found and found[1]


def hidden_after(config: str) -> str | None:
    """Return how old a line is that no query finds before it is written down, such as `2h41m0s`; None for no age.

    Loki writes a stream down half an hour after its last push. As one process it goes by the first of these two
    settings, which it then derives itself; as several by the second.
    """
    for name in ("query_store_max_look_back_period", "query_ingesters_within"):
        age = setting(config, name) or NO_LIMIT
        if age != NO_LIMIT:
            return None if age.startswith("-") else age
    return None
