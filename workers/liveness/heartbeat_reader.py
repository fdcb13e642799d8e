"""Reads heartbeats from Redis, and records for which period trainers could write them without interruption."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import redis

from trainwire.schemas.keys import HALTED_KEY, KINDS, ahead_key, alive_key, listening_key, shard_of, stream_key
from trainwire.schemas.streams.servers import Answers, Commands, ask_each
from trainwire.schemas.wire.heartbeats import Heartbeat, decode_heartbeat
from trainwire.schemas.wire.validation import InvalidMessage
from trainwire.workers.drain.lookahead import read_through
from trainwire.workers.drain.stream import redis_errors

FORGET_AFTER_S: Final = 3600
"""Heartbeats older than this are deleted. Postgres records that their jobs had one (`watched_attempt`)."""
_LOOKED_AT: Final = "looked_at"
_SINCE: Final = "since"


@dataclass(frozen=True)
class Heartbeats:
    """The newest heartbeat of each source, and for each shard the period in which its server accepted heartbeats.

    Times are in milliseconds by the clock of the shard's server. `unavailable` contains the servers that did not
    answer (host:port -> reason); all times of their shards are 0.
    """

    now_ms: Sequence[int]
    since_ms: Sequence[int]
    """For each shard: since when heartbeats could be written without interruption."""
    beats: Mapping[int, Sequence[Heartbeat]]
    """The heartbeats by job number."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    unread_ms: Sequence[int] = ()
    """For each shard: how long its oldest message has waited for a drain."""

    def age_s(self, beat: Heartbeat) -> float:
        """Return the age of a heartbeat in seconds.

        If its time is in the future (the server's clock was set back), return the length of the period in which
        heartbeats could be written.
        """
        shard = self._shard(beat.job)
        at_ms = beat.at if beat.at <= self.now_ms[shard] else self.since_ms[shard]
        return (self.now_ms[shard] - at_ms) / 1000

    def time_ago(self, job_id: int, ago_s: float | None) -> datetime | None:
        """Return the time `ago_s` seconds ago, by the clock of the Redis server of the job; None for None."""
        now_s = self.now_ms[self._shard(job_id)] / 1000
        return None if ago_s is None else datetime.fromtimestamp(now_s - ago_s, UTC)

    def covered_s(self, job_id: int) -> float:
        """Return for how many seconds, until now, heartbeats of the job could be written without interruption."""
        shard = self._shard(job_id)
        return (self.now_ms[shard] - self.since_ms[shard]) / 1000

    def unread_s(self, job_id: int) -> float:
        """Return for how many seconds the oldest unread message in the streams of the job's shard has waited."""
        return self.unread_ms[self._shard(job_id)] / 1000 if self.unread_ms else 0.0

    def _shard(self, job_id: int) -> int:
        return shard_of(job_id, len(self.since_ms))


def read_heartbeats(client: redis.Redis, shards: int, longest_gap_s: float) -> Heartbeats:
    """Return the newest heartbeats, delete old ones, and record the time of this read in Redis.

    The period in which heartbeats could be written begins again now if the last read was more than `longest_gap_s`
    seconds ago (Redis, the workers or beat were down), is not recorded, or lies in the future (the clock was set
    back). Raises `Unavailable` if Redis does not answer or is full.
    """
    gap_ms = int(longest_gap_s * 1000)
    with redis_errors():
        before = ask_each(client, {shard: _questions(shard) for shard in range(shards)})
        since_ms = {
            shard: _since_ms(noted, before.now_ms[shard], gap_ms) for shard, (noted, *_) in before.replies.items()
        }
        # A full Redis refuses these commands as it refuses heartbeats: then the read fails and the period has a
        # gap.
        notes = {shard: _note(shard, before.now_ms[shard], since) for shard, since in since_ms.items()}
        unread_ms = _unread_ms(client, before)
        found = ask_each(client, notes)
        now_ms = {shard: before.now_ms[shard] for shard in found.replies}
        beats: dict[int, list[Heartbeat]] = defaultdict(list)
        for shard, (_, values) in found.replies.items():
            kept, old = _split(values, now_ms[shard])
            for beat in kept:
                beats[beat.job].append(beat)
            if old:
                ask_each(client, {shard: [("HDEL", alive_key(shard), *old)]})
    every = range(shards)
    since = [since_ms[shard] if shard in now_ms else 0 for shard in every]
    unread = [unread_ms.get(shard, 0) for shard in every]
    return Heartbeats(
        [now_ms.get(shard, 0) for shard in every], since, beats, before.unavailable | found.unavailable, unread
    )


def record_writable(client: redis.Redis, shards: int, longest_gap_s: float) -> None:
    """Record in Redis that heartbeats can be written now.

    Otherwise the next `read_heartbeats`, which may be late because workers are busy, would assume an interruption.
    """
    with redis_errors():
        found = ask_each(client, {shard: [("HGETALL", listening_key(shard))] for shard in range(shards)})
        notes = {
            shard: _note(shard, now_ms, _since_ms(found.replies[shard][0], now_ms, int(longest_gap_s * 1000)))[:1]
            for shard, now_ms in found.now_ms.items()
        }
        with suppress(redis.OutOfMemoryError):  # a full Redis refuses heartbeats too
            ask_each(client, notes)


def recent_heartbeats(client: redis.Redis, shards: int, within_s: float) -> list[Heartbeat] | None:
    """Return the heartbeats of all jobs that are at most `within_s` seconds old. Changes nothing in Redis.

    Returns None if the server of a shard in a cluster does not answer; raises redis-py's errors of a single Redis.
    """
    found = ask_each(client, {shard: [("HVALS", alive_key(shard))] for shard in range(shards)})
    if len(found.replies) < shards:
        return None
    beats = [(shard, _read(data)) for shard, (values,) in found.replies.items() for data in values]
    return [beat for shard, beat in beats if beat and beat.at >= found.now_ms[shard] - within_s * 1000]


def _questions(shard: int) -> Commands:
    """Return the Redis commands that read a shard's record of the last read, and each stream's first entry."""
    firsts = [_first(stream_key(kind, shard)) for kind in KINDS]
    return [("HGETALL", listening_key(shard)), *firsts]


def _since_ms(noted: Mapping[bytes, bytes], now_ms: int, gap_ms: int) -> int:
    """Return since when heartbeats could be written without interruption (milliseconds by the server's clock).

    `noted` is the record that the previous read of the heartbeats left in Redis.
    """
    known = {name.decode(): int(value) for name, value in noted.items()}
    looked_at = known.get(_LOOKED_AT)
    has_gap = looked_at is None or not 0 <= now_ms - looked_at <= gap_ms
    return now_ms if has_gap else known.get(_SINCE, now_ms)


def _unread_ms(client: redis.Redis, before: Answers[int]) -> dict[int, int]:
    """Return the age in milliseconds of the oldest unread message of each shard.

    In a halted stream, valid messages are stored by a look-ahead: entries that it has passed are not unread.
    """
    firsts = {
        (kind, shard): found
        for shard, (_, *replies) in before.replies.items()
        for kind, found in zip(KINDS, replies, strict=True)
    }
    names = ask_each(client, {HALTED_KEY: [("HKEYS", HALTED_KEY)]}).replies.get(HALTED_KEY, [()])[0]
    halted = {topic: stream_key(*topic) for topic in firsts if stream_key(*topic).encode() in names}
    if halted:
        looks = ask_each(client, {topic: [("GET", ahead_key(key))] for topic, key in halted.items()}).replies
        behind = {topic: f"({read_through(state)}" for topic, (state,) in looks.items()}
        found_behind = ask_each(client, {topic: [_first(halted[topic], id_)] for topic, id_ in behind.items()})
        firsts |= {topic: found for topic, (found,) in found_behind.replies.items()}
    waited_ms = dict.fromkeys(before.replies, 0)
    for (_, shard), found in firsts.items():
        if found:
            appended_ms = int(found[0][0].partition(b"-")[0])
            waited_ms[shard] = max(waited_ms[shard], before.now_ms[shard] - appended_ms)
    return waited_ms


def _first(stream: str, start: str = "-") -> tuple[Any, ...]:
    """Return the Redis command that reads the first entry of a stream at or after `start`."""
    return "XRANGE", stream, start, "+", "COUNT", 1


def _note(shard: int, now_ms: int, since_ms: int) -> Commands:
    """Return the Redis commands that record the time of this read of a shard, and read its heartbeats."""
    key = listening_key(shard)
    return [("HSET", key, _LOOKED_AT, now_ms, _SINCE, since_ms), ("HGETALL", alive_key(shard))]


def _split(found: Mapping[bytes, bytes], now_ms: int) -> tuple[list[Heartbeat], list[bytes]]:
    """Return the valid heartbeats of a shard's hash, and the names of the fields that are invalid or too old.

    A heartbeat may be of a job of another shard, because a trainer uses the number of shards that was set when it
    started.
    """
    kept, old = [], []
    for name, data in found.items():
        beat = _read(data)
        if beat is None or now_ms - beat.at > FORGET_AFTER_S * 1000:
            old.append(name)
        else:
            kept.append(beat)
    return kept, old


def _read(data: bytes) -> Heartbeat | None:
    try:
        return decode_heartbeat(data)
    except InvalidMessage:
        return None
