"""What only a run with `strict=True` raises: Redis is away, the rank is taken, not everything is stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from trainwire.ingest.outage import Unavailable
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.settings import shown_host

if TYPE_CHECKING:
    from trainwire.ingest.receipt import Receipt
    from trainwire.ingest.sending.heartbeat import Heart
    from trainwire.ingest.sending.redis_connection import StreamLink

MISSED_BEATS: Final = 2
"""A process whose claim is so many of its intervals old does not live any more."""
LOOK_EVERY_S: Final = 0.2
MOST_WAIT_S: Final = 20.0
"""A claim that was not renewed for so long is free, whatever interval and time it states: anyone can write one."""


class StrictError(RuntimeError):
    """A strict run cannot do what it promises; the text says why and what to do."""


class RedisAway(StrictError):  # noqa: N818 - said as it stands
    """Redis does not answer at the start of the run."""


class RankTaken(StrictError):  # noqa: N818
    """Another live process is the same rank of the same attempt of the job."""


class NotStored(StrictError):  # noqa: N818
    """The run has ended, and not everything is committed in Postgres; `receipt` says how far it came."""

    def __init__(self, job_id: int, receipt: Receipt) -> None:
        self.receipt = receipt
        left, lost = receipt.unsettled, sum(receipt.lost.values())
        spooled = sum(receipt.spooled.values())
        if receipt.is_job_deleted:
            super().__init__(f"job {job_id} was deleted: its messages are not stored")
            return
        kept = f"{spooled:,} of them are in the spool and are sent later" if spooled else "nothing keeps them"
        super().__init__(
            f"job {job_id}: {left:,} messages are not stored; {kept}. Look at Redis and the workers, or give "
            "finish() a longer timeout_s"
            if left
            else f"job {job_id}: {lost:,} messages are lost: `trainwire status {job_id}` names them and the reason"
        )


def check_start(
    link: StreamLink,
    heart: Heart,
    redis_url: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = monotonic_s,
) -> None:
    """Raise `RedisAway` where Redis does not answer, `RankTaken` where another live process has the rank.

    It takes as long as Redis takes to answer, seconds at most. Where it finds the claim of another process it
    waits until that is renewed, or two heartbeats old, and never longer than `MOST_WAIT_S`.
    """
    try:
        _claim(link, heart, sleep, clock)
    except Unavailable as exc:
        host = shown_host(redis_url)
        raise RedisAway(
            f"Redis at {host} does not answer: {exc}. Start it, name another one in REDIS_URL, or leave out strict"
        ) from exc
    finally:
        link.close()


def _claim(link: StreamLink, heart: Heart, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
    found = first = link.claim(heart)
    deadline = clock() + MOST_WAIT_S
    while found is not None:
        if first is None or first.holder.source != found.holder.source:
            first = found
        if found.holder.at > first.holder.at:
            raise RankTaken(heart.words_on(found.holder))
        is_overdue = clock() >= deadline
        is_left_behind = is_overdue or found.age_s > MISSED_BEATS * found.holder.every_s
        if not is_left_behind:
            sleep(LOOK_EVERY_S)
        found = link.claim(heart, by_force=is_left_behind)
        if found is not None and is_overdue:  # another process has just replaced our claim
            raise RankTaken(heart.words_on(found.holder))
