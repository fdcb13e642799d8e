"""The Redis side of liveness: the newest heartbeats, and for how long they could have been heard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import redis

from trainwire.schemas.heartbeats import Heartbeat, decode_heartbeat
from trainwire.schemas.keys import HALTED_KEY, KINDS, ahead_key, alive_key, listening_key, shard_of, stream_key
from trainwire.schemas.streams.servers import Answers, Commands, ask_each
from trainwire.schemas.validation import InvalidMessage
from trainwire.workers.drain.lookahead import read_through
from trainwire.workers.drain.stream import redis_errors

FORGET_AFTER_S: Final = 3600
"""A heartbeat that is older is dropped; that its trainer once had one is known in Postgres."""
_LOOKED_AT: Final = "looked_at"
_SINCE: Final = "since"


@dataclass(frozen=True)
class Heard:
    """The heartbeats of every job by now, and since when they have been listened to, both per shard.

    Where a shard's server was `away` (host:port -> why), both are 0: it could not be heard for any time.
    """

    now_ms: Sequence[int]
    since_ms: Sequence[int]
    beats: Mapping[int, Sequence[Heartbeat]]
    away: Mapping[str, str] = field(default_factory=dict)
    unread_ms: Sequence[int] = ()
    """Per shard: for how long its oldest message has waited for a drain."""

    def age_s(self, beat: Heartbeat) -> float:
        """Return how old a heartbeat is; one from the future (the clock was set back) as old as the listening."""
        shard = self._shard(beat.job)
        at_ms = beat.at if beat.at <= self.now_ms[shard] else self.since_ms[shard]
        return (self.now_ms[shard] - at_ms) / 1000

    def moment(self, job_id: int, ago_s: float | None) -> datetime | None:
        """Return the time so many seconds ago, by the clock of the job's server; None for None."""
        now_s = self.now_ms[self._shard(job_id)] / 1000
        return None if ago_s is None else datetime.fromtimestamp(now_s - ago_s, UTC)

    def listened_s(self, job_id: int) -> float:
        """Return for how long this job's heartbeats could have been heard without a break."""
        shard = self._shard(job_id)
        return (self.now_ms[shard] - self.since_ms[shard]) / 1000

    def unread_s(self, job_id: int) -> float:
        """Return for how long a message of this job may have waited for a drain."""
        return self.unread_ms[self._shard(job_id)] / 1000 if self.unread_ms else 0.0

    def _shard(self, job_id: int) -> int:
        return shard_of(job_id, len(self.since_ms))


def listen(client: redis.Redis, shards: int, longest_gap_s: float) -> Heard:
    """Return what is heard now, and take note of it, shard by shard.

    A look that comes more than `longest_gap_s` after the last one begins anew, for whatever was down between them:
    Redis, the workers or beat. So does a Redis that has forgotten the last look or set its clock back.
    """
    gap_ms = int(longest_gap_s * 1000)
    with redis_errors():
        before = ask_each(client, {shard: _how_it_stands(shard) for shard in range(shards)})
        since_ms = {shard: _since_ms(said, before.now_ms[shard], gap_ms) for shard, said in before.replies.items()}
        # A Redis too full for this refuses heartbeats too: then nothing was heard.
        notes = {shard: _note(shard, before.now_ms[shard], since) for shard, since in since_ms.items()}
        unread_ms = _unread_ms(client, before)
        heard = ask_each(client, notes)
        now_ms = {shard: before.now_ms[shard] for shard in heard.replies}
        beats: dict[int, list[Heartbeat]] = defaultdict(list)
        for shard, (_, found) in heard.replies.items():
            kept, past = _sorted_out(found, now_ms[shard])
            for beat in kept:
                beats[beat.job].append(beat)
            if past:
                ask_each(client, {shard: [("HDEL", alive_key(shard), *past)]})
    every = range(shards)
    since = [since_ms[shard] if shard in now_ms else 0 for shard in every]
    unread = [unread_ms.get(shard, 0) for shard in every]
    return Heard([now_ms.get(shard, 0) for shard in every], since, beats, before.away | heard.away, unread)


def note_look(client: redis.Redis, shards: int, longest_gap_s: float) -> None:
    """Note that heartbeats can be written now, for a `listen` that comes late because all processes are busy."""
    with redis_errors():
        found = ask_each(client, {shard: [("HGETALL", listening_key(shard))] for shard in range(shards)})
        notes = {
            shard: _note(shard, now_ms, _since_ms(found.replies[shard], now_ms, int(longest_gap_s * 1000)))[:1]
            for shard, now_ms in found.now_ms.items()
        }
        with suppress(redis.OutOfMemoryError):  # full: then no heartbeat can be written either
            ask_each(client, notes)


def living(client: redis.Redis, shards: int, within_s: float) -> list[Heartbeat] | None:
    """Return the heartbeats that are at most this old, of all jobs; None where a shard's server is away.

    Nothing is changed.
    """
    found = ask_each(client, {shard: [("HVALS", alive_key(shard))] for shard in range(shards)})
    if len(found.replies) < shards:
        return None
    beats = [(shard, _read(data)) for shard, (values,) in found.replies.items() for data in values]
    return [beat for shard, beat in beats if beat and beat.at >= found.now_ms[shard] - within_s * 1000]


def _how_it_stands(shard: int) -> Commands:
    """Return what asks for the note of the last look, and for the oldest unread message of each kind."""
    firsts = [_first(stream_key(kind, shard)) for kind in KINDS]
    return [("HGETALL", listening_key(shard)), *firsts]


def _since_ms(said: Sequence[Any], now_ms: int, gap_ms: int) -> int:
    """Return since when a shard has been listened to without a break."""
    noted, *_ = said
    known = {name.decode(): int(value) for name, value in noted.items()}
    looked_at = known.get(_LOOKED_AT)
    has_gap = looked_at is None or not 0 <= now_ms - looked_at <= gap_ms
    return now_ms if has_gap else known.get(_SINCE, now_ms)


def _unread_ms(client: redis.Redis, before: Answers[int]) -> dict[int, int]:
    """Return for how long the oldest unread message of each shard has waited.

    In a halted stream valid messages are stored from behind the garbage: what the look ahead has passed is read.
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
    """Return the command that reads one entry of a stream."""
    return "XRANGE", stream, start, "+", "COUNT", 1


def _note(shard: int, now_ms: int, since_ms: int) -> Commands:
    """Return what notes this look, then asks for the heartbeats."""
    key = listening_key(shard)
    return [("HSET", key, _LOOKED_AT, now_ms, _SINCE, since_ms), ("HGETALL", alive_key(shard))]


def _sorted_out(found: Mapping[bytes, bytes], now_ms: int) -> tuple[list[Heartbeat], list[bytes]]:
    """Return the heartbeats of a shard's hash, and the fields of what is none or too old to keep.

    A trainer that was started when there was another number of shards writes into another hash than its job's.
    """
    kept, past = [], []
    for name, data in found.items():
        beat = _read(data)
        if beat is None or now_ms - beat.at > FORGET_AFTER_S * 1000:
            past.append(name)
        else:
            kept.append(beat)
    return kept, past


def _read(data: bytes) -> Heartbeat | None:
    try:
        return decode_heartbeat(data)
    except InvalidMessage:
        return None
