"""Loki's default limits, and its configuration as it reports it."""

from __future__ import annotations

import re
from typing import Final

from trainwire.stores.loki.http import LokiHttp

OK: Final = 200
NO_LIMIT: Final = "0s"
MAX_AGE_NS: Final = 7 * 24 * 3600 * 10**9
"""Loki's default of `reject_old_samples_max_age`: older lines are refused."""
MAX_FUTURE_NS: Final = 600 * 10**9
"""Loki's default of `creation_grace_period`: lines further ahead of its clock are refused."""
MAX_AHEAD_NS: Final = 300 * 10**9
"""A line whose time is further ahead of the time at which Postgres stored it is sent with this limit as its time
(`trainwire.workers.sinks.loki.backlog`). The rest of the grace period allows for our clocks to differ."""


def shown_config(http: LokiHttp) -> str | None:
    """Return Loki's configuration as YAML; None if a proxy or the tenant's rights do not allow it.

    Raises `LokiUnavailable`.
    """
    answer = http.get("/config", {})
    return answer.data.decode(errors="replace") if answer.status == OK else None


def setting(config: str, name: str) -> str | None:
    """Return the first value of that name; None if there is none."""
    found = re.search(rf"^[\s-]*{name}: *(\S+)", config, flags=re.MULTILINE)
    return found and found[1]


def hidden_after(config: str) -> str | None:
    """Return the age of late lines that queries find only after they are flushed, such as `2h41m0s`.

    None if queries find late lines of any age at once. Loki flushes a stream half an hour after its last push.
    A single process uses the first of these settings, which it derives itself; several use the second.
    """
    for name in ("query_store_max_look_back_period", "query_ingesters_within"):
        age = setting(config, name) or NO_LIMIT
        if age != NO_LIMIT:
            return None if age.startswith("-") else age
    return None
