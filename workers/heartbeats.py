"""The Redis side of liveness: the newest heartbeats, and for how long they could have been heard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import redis

from schemas.checks import InvalidMessage
from schemas.heartbeats import Heartbeat, decode_heartbeat
from schemas.routes import KINDS, LISTENING_KEY, alive_key, shard_of, stream_key
from workers.streams import redis_errors

FORGET_AFTER_S: Final = 3600
"""A heartbeat that is older is dropped; that its trainer once had one is known in Postgres."""
_LOOKED_AT: Final = "looked_at"


@dataclass(frozen=True)
class Heard:
    """The heartbeats of every job at `now_ms`, and per shard since when they have been listened to."""

    now_ms: int
    since_ms: Sequence[int]
    beats: Mapping[int, Sequence[Heartbeat]]

    def age_s(self, beat: Heartbeat) -> float:
        """Return how old a heartbeat is; one from the future (the clock was set back) as old as the listening."""
        at_ms = beat.at if beat.at <= self.now_ms else self.since_ms[shard_of(beat.job, len(self.since_ms))]
        return (self.now_ms - at_ms) / 1000

    def moment(self, ago_s: float | None) -> datetime | None:
        """Return the time so many seconds ago; None for None."""
        return None if ago_s is None else datetime.fromtimestamp(self.now_ms / 1000 - ago_s, UTC)

    def listened_s(self, job_id: int) -> float:
        """Return for how long this job's heartbeats could have been heard without a break."""
        return (self.now_ms - self.since_ms[shard_of(job_id, len(self.since_ms))]) / 1000


def listen(client: redis.Redis, shards: int, longest_gap_s: float) -> Heard:
    """Return what is heard now, and take note of it.

    A look that comes more than `longest_gap_s` after the last one begins anew, for whatever was down between them:
    Redis, the workers or beat. So does a Redis that has forgotten the last look or set its clock back, and so
    does a shard of which a message has waited for that long: a trainer's last word may be in what nobody has read.
    """
    gap_ms = int(longest_gap_s * 1000)
    with redis_errors():
        now_ms = _now_ms(client)
        known = _numbers(cast("dict[bytes, bytes]", client.hgetall(LISTENING_KEY)))
        looked_at = known.get(_LOOKED_AT)
        has_gap = looked_at is None or not 0 <= now_ms - looked_at <= gap_ms
        oldest_ms = _oldest_entries(client, shards)
        since_ms = [
            now_ms if has_gap or now_ms - oldest_ms[shard] > gap_ms else known.get(str(shard), now_ms)
            for shard in range(shards)
        ]
        # A Redis too full for this refuses heartbeats too: then nothing was heard.
        said: dict[Any, Any] = {_LOOKED_AT: now_ms, **{str(shard): at for shard, at in enumerate(since_ms)}}
        client.hset(LISTENING_KEY, mapping=said)
        beats = _heartbeats(client, shards, now_ms)
    return Heard(now_ms, since_ms, beats)


def living(client: redis.Redis, shards: int, within_s: float) -> list[Heartbeat]:
    """Return the heartbeats that are at most this old, of all jobs; nothing is changed."""
    oldest_ms = _now_ms(client) - within_s * 1000
    found = [_read(data) for shard in range(shards) for data in _values(client, alive_key(shard))]
    return [beat for beat in found if beat is not None and beat.at >= oldest_ms]


def _values(client: redis.Redis, key: str) -> list[bytes]:
    return cast("list[bytes]", client.hvals(key))


def _heartbeats(client: redis.Redis, shards: int, now_ms: int) -> Mapping[int, Sequence[Heartbeat]]:
    beats: dict[int, list[Heartbeat]] = defaultdict(list)
    for shard in range(shards):
        past: list[Any] = []
        for field, data in cast("dict[bytes, bytes]", client.hgetall(alive_key(shard))).items():
            beat = _read(data)
            if beat is None or now_ms - beat.at > FORGET_AFTER_S * 1000:
                past.append(field)
            elif shard_of(beat.job, shards) == shard:
                beats[beat.job].append(beat)
        if past:
            client.hdel(alive_key(shard), *past)
    return beats


def _read(data: bytes) -> Heartbeat | None:
    try:
        return decode_heartbeat(data)
    except InvalidMessage:
        return None


def _oldest_entries(client: redis.Redis, shards: int) -> list[int]:
    """Return, for each shard, when its oldest unread message was published; a time far ahead for none."""
    pipeline = client.pipeline(transaction=False)
    for shard in range(shards):
        for kind in KINDS:
            pipeline.xrange(stream_key(kind, shard), count=1)
    firsts = [int(found[0][0].partition(b"-")[0]) if found else 2**63 for found in pipeline.execute()]
    return [min(firsts[len(KINDS) * shard :][: len(KINDS)]) for shard in range(shards)]


def _now_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


def _numbers(found: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in found.items()}
