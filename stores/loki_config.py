"""What Loki shows of its own configuration, and what follows from it."""

from __future__ import annotations

import re
from typing import Final

from stores.loki_http import LokiHttp

OK: Final = 200
NO_LIMIT: Final = "0s"


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
