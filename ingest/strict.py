"""The errors of strict runs, and the check at their start that the server answers and the rank is free."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.servers.outage import Refused, Unavailable
from trainwire.ingest.servers.server_names import shown_server
from trainwire.schemas.gateway_urls import is_gateway

if TYPE_CHECKING:
    from trainwire.ingest.receipt import Receipt
    from trainwire.ingest.sending.heartbeat import SourceHeartbeat
    from trainwire.ingest.sending.transports.transport import Transport

MISSED_BEATS: Final = 2
"""Number of heartbeat intervals without renewal of its claim after which a process counts as ended."""
POLL_INTERVAL_S: Final = 0.2
MOST_WAIT_S: Final = 20.0
"""Seconds without renewal after which any claim is free: any trainer can write a claim with a longer interval."""


class StrictError(RuntimeError):
    """A strict run cannot start, or has not stored everything; the message names the cause and the remedy."""


class RedisAway(StrictError):  # noqa: N818 - a public name
    """Redis or the gateway does not respond at the start of a strict run, or refuses this trainer."""


class RankTaken(StrictError):  # noqa: N818
    """Another live process has the same rank of the same attempt of the job."""


class NotStored(StrictError):  # noqa: N818
    """The run has ended, and not all its messages are committed in Postgres; `receipt` has the counts."""

    def __init__(self, job_id: int, receipt: Receipt) -> None:
        self.receipt = receipt
        left, lost = receipt.unsettled, sum(receipt.lost.values())
        spooled = sum(receipt.spooled.values())
        if receipt.is_job_deleted:
            super().__init__(f"job {job_id} was deleted: its messages are not stored")
            return
        kept = f"{spooled:,} of them are in the spool and are sent later" if spooled else "nothing keeps them"
        super().__init__(
            f"job {job_id}: {left:,} messages are not stored; {kept}. Look at the server and the workers, or give "
            "finish() a longer timeout_s"
            if left
            else f"job {job_id}: {lost:,} messages are lost: `trainwire status {job_id}` names them and the reason"
        )


def check_start(connection: Transport, source: SourceHeartbeat, address: str) -> None:
    """Claim the rank at the start of a strict run.

    If another process has claimed it, wait until that process renews its claim, or until the claim is
    `MISSED_BEATS` heartbeats old, at most `MOST_WAIT_S`. Raises `RedisAway` if the server refuses, or does not
    answer within the transport's timeouts, and `RankTaken` if a live process has the rank. Closes the connection
    in any case.
    """
    try:
        _claim(connection, source)
    except Refused as exc:
        raise RedisAway(f"{exc}. Correct it, or leave out strict") from exc
    except Unavailable as exc:
        variable = "TRAINWIRE_URL" if is_gateway(address) else "REDIS_URL"
        raise RedisAway(
            f"{shown_server(address)} does not answer: {exc}. Start it, name another one in {variable}, or leave "
            "out strict"
        ) from exc
    finally:
        connection.close()


def _claim(connection: Transport, source: SourceHeartbeat) -> None:
    found = first = connection.claim(source)
    deadline = monotonic_s() + MOST_WAIT_S
    while found is not None:
        if first is None or first.holder.source != found.holder.source:
            first = found
        if found.holder.at > first.holder.at:
            raise RankTaken(source.conflict_text(found.holder))
        is_overdue = monotonic_s() >= deadline
        is_stale = is_overdue or found.age_s > MISSED_BEATS * found.holder.every_s
        if not is_stale:
            time.sleep(POLL_INTERVAL_S)
        found = connection.claim(source, by_force=is_stale)
        if found is not None and is_overdue:  # another process has just replaced our claim
            raise RankTaken(source.conflict_text(found.holder))
