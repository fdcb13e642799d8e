"""Deleting the lines of a job from Loki: a request to its compactor, which is off unless it was configured."""

from __future__ import annotations

import time
from typing import Final

from trainwire.stores.loki.http import LokiHttp, unavailable, words_of

PATH: Final = "/loki/api/v1/delete"
_ACCEPTED: Final = 204
_REFUSALS: Final = {400, 403, 404, 405}
"""405: a Loki that has the path for reading only, as some proxies give it."""
REMEDY: Final = (
    "switch its delete API on (compactor: retention_enabled: true and delete_request_store, limits_config: "
    "deletion_mode: filter-and-delete)"
)


class LokiKeepsLines(Exception):  # noqa: N818 - said to people as it stands
    """Loki answers, and does not take requests to delete lines."""


def request_deletion(http: LokiHttp, job_id: int, start_ns: int) -> None:
    """Have Loki delete all lines of a job from a time on up to now.

    It deletes them later: from its answers within minutes, from its store after `delete_request_cancel_period`,
    a day by default. Raises `LokiKeepsLines` and `LokiUnavailable`.
    """
    # Loki takes seconds in ten digits, and refuses an end in the future.
    start_s = min(max(start_ns // 10**9, 10**9), int(time.time()) - 1)
    query = f'{{job="training", job_id="{job_id}"}}'
    answer = http.post_empty(PATH, {"query": query, "start": str(start_s)})
    if answer.status == _ACCEPTED:
        return
    if answer.status in _REFUSALS:
        said = words_of(answer)[:200]
        raise LokiKeepsLines(f"Loki answered {answer.status} ({said}): {REMEDY}")
    raise unavailable(answer)
