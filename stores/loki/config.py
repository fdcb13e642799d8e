"""Loki's default limits, and a parser for the configuration that it reports."""

from __future__ import annotations

import re
from typing import Final

from trainwire.stores.loki.http import LokiHttp

OK: Final = 200
NO_LIMIT: Final = "0s"
MAX_AGE_NS: Final = 7 * 24 * 3600 * 10**9
"""Default of Loki's `reject_old_samples_max_age`; Loki rejects older lines."""
MAX_FUTURE_NS: Final = 600 * 10**9
"""Default of Loki's `creation_grace_period`; Loki rejects lines whose time is further ahead of its clock."""
MAX_AHEAD_NS: Final = 300 * 10**9
"""Largest difference by which the time of a delivered line may be ahead of the time at which Postgres stored it.

Later times are replaced by this limit (`trainwire.workers.sinks.loki.backlog`). It is less than MAX_FUTURE_NS,
because the clocks of Postgres and Loki may differ.
"""


def shown_config(http: LokiHttp) -> str | None:
    """Return Loki's configuration as YAML; None if the status is not 200, for example because of a proxy.

    Raises `LokiUnavailable` if there is no response.
    """
    answer = http.get("/config", {})
    return answer.data.decode(errors="replace") if answer.status == OK else None


def setting(config: str, name: str) -> str | None:
    """Return the first value of the setting `name` in a YAML text; None if it does not occur."""
    found = re.search(rf"^[\s-]*{name}: *(\S+)", config, flags=re.MULTILINE)
    return found and found[1]


def hidden_after(config: str) -> str | None:
    """Return the age, such as `2h41m0s`, up to which queries also find lines that Loki has not flushed yet.

    Older lines are found only after Loki has flushed their stream, by default half an hour after the last push to
    it. Returns None if there is no such limit. It is `query_store_max_look_back_period`, which a single-process
    Loki sets itself, otherwise `query_ingesters_within`.
    """
    for name in ("query_store_max_look_back_period", "query_ingesters_within"):
        age = setting(config, name) or NO_LIMIT
        if age != NO_LIMIT:
            return None if age.startswith("-") else age
    return None
