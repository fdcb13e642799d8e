"""The errors of a strict run: the server does not answer, the rank is taken, not everything is stored."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from trainwire.ingest.outage import Refused, Unavailable
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.server_names import shown_server
from trainwire.schemas.gateway_urls import is_gateway

if TYPE_CHECKING:
    from trainwire.ingest.receipt import Receipt
    from trainwire.ingest.sending.heartbeat import SourceHeartbeat
    from trainwire.ingest.sending.transport import Transport

MISSED_BEATS: Final = 2
"""Number of its heartbeat intervals after which a process with an unrenewed claim is taken as ended."""
LOOK_EVERY_S: Final = 0.2
MOST_WAIT_S: Final = 20.0
"""A claim not renewed for this time is free, even if it states a longer interval: any trainer can write one."""


class StrictError(RuntimeError):
    """A strict run cannot start, or has not stored everything; the message names the cause and the remedy."""


class RedisAway(StrictError):  # noqa: N818 - a public name
    """Redis, or the gateway, does not answer or refuses the trainer at the start of the run."""


class RankTaken(StrictError):  # noqa: N818
    """Another live process is the same rank of the same attempt of the job."""


class NotStored(StrictError):  # noqa: N818
    """The run has ended, and not everything is committed in Postgres; `receipt` has the counts."""

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
    """Claim the rank.

    Raises `RedisAway` where the server does not answer or refuses, `RankTaken` where a live process has the rank.
    The server has a few seconds to answer. If another process has a claim, this function waits until the claim is
    renewed, or two heartbeats old, at most `MOST_WAIT_S`.
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
            time.sleep(LOOK_EVERY_S)
        found = connection.claim(source, by_force=is_stale)
        if found is not None and is_overdue:  # another process has just replaced our claim
            raise RankTaken(source.conflict_text(found.holder))
