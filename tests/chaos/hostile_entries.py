"""A hostile trainer that sends entries which cost too much, are too many, or are for the jobs of others.

tests/hostile_client.py tries the commands; this one tries the contents. It sends no completion for others' jobs:
Redis lets every trainer write for any job (SECURITY.md), so such a completion would end the job.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import redis
import zstandard
from redis.backoff import NoBackoff
from redis.retry import Retry

from trainwire.schemas.keys import KINDS, Kind, claim_key, shard_of, stream_key

SHARDS: Final = 4
OWN_JOBS: Final = range(700_000, 700_008)
HONEST_JOBS: Final = (1, 2, 3)
RANKS: Final = (0, 1)
FLOOD_LINES: Final = 30_000
LINES_PER_ENTRY: Final = 500
GARBAGE_ENTRIES: Final = 3_000
MAX_SEQ: Final = 2**63 - 1

Fields = dict[Any, Any]
_pack = msgspec.msgpack.encode


class HostileEntries:
    """Sends bombs, floods, garbage and forged entries, in an order that a seed decides."""

    def __init__(self, url: str, seed: int) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=10, retry=Retry(NoBackoff(), 0))
        self._chance = random.Random(seed)
        self._bombs = list(bombs())
        self._seqs: Counter[tuple[int, str, Kind]] = Counter()
        self.sent: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def act(self) -> None:
        """Send one hostile entry or group of entries."""
        act: Callable[[], None] = self._chance.choice(
            [self.bomb, self.bomb, self.bomb, self.flood, self.flood_garbage, self.forge, self.forge, self.jump]
        )
        try:
            act()
        except redis.RedisError as exc:
            self.refused[f"{act.__name__}: {type(exc).__name__}"] += 1
        else:
            self.sent[act.__name__] += 1

    def bomb(self) -> None:
        """Send an entry of some bytes that is large, or has very many elements, once it is decoded."""
        kind, enc, body = self._chance.choice(self._bombs)
        self._send(kind, self._entry(kind, self._own_job(), enc, body))

    def flood(self) -> None:
        """Send as many valid lines at once as workers store in a second or so, on the shard of an honest job."""
        shard = shard_of(self._honest_job(), SHARDS)
        job = self._chance.choice([job for job in OWN_JOBS if shard_of(job, SHARDS) == shard])
        lines = [f"flood {number} {'x' * 80}" for number in range(LINES_PER_ENTRY)]
        pipe = self._client.pipeline(transaction=False)
        for _ in range(FLOOD_LINES // LINES_PER_ENTRY):
            body = _pack({"log_type": "stdout", "lines": lines, "ts": [time.time_ns()] * LINES_PER_ENTRY})
            pipe.xadd(self._stream("logs", job), self._entry("logs", job, "msgpack", body))
        pipe.execute()

    def flood_garbage(self) -> None:
        """Send very many entries that cannot be stored, to the stream of an honest job."""
        stream = self._stream(self._chance.choice(("logs", "metrics")), self._honest_job())
        pipe = self._client.pipeline(transaction=False)
        for number in range(GARBAGE_ENTRIES):
            pipe.xadd(stream, self._chance.choice(garbage(number)))
        pipe.execute()

    def forge(self) -> None:
        """Send entries for an honest job: under an own source, and under each one that its claims name."""
        job = self._honest_job()
        for source in (f"0-forged{self._chance.randrange(3)}", *self._names_of(job)):
            line = {"log_type": "stdout", "lines": [f"forged {time.time_ns()}"], "ts": [time.time_ns()]}
            point = {"points": [{"ts": time.time_ns(), "step": 1, "values": {"loss": 666.0}}]}
            self._send("logs", self._entry("logs", job, "msgpack", _pack(line), source))
            self._send("metrics", self._entry("metrics", job, "msgpack", _pack(point), source))

    def jump(self) -> None:
        """Send an entry whose number is far ahead, or the largest, or whose job is the largest."""
        job = self._chance.choice((self._own_job(), self._honest_job(), MAX_SEQ))
        body = _pack({"log_type": "stdout", "lines": ["jump"], "ts": [time.time_ns()]})
        entry = self._entry("logs", job, "msgpack", body, f"0-jump{self._chance.randrange(100)}")
        seq = self._chance.choice((10**9, 10**9 + 1, MAX_SEQ - 1, MAX_SEQ, MAX_SEQ + 1, 0, -1))
        self._send("logs", entry | {"seq": seq})

    def _names_of(self, job: int) -> Iterator[str]:
        for rank in RANKS:
            for attempt in (0, 1):
                claim = self._client.get(claim_key(job, attempt, rank, ""))
                try:
                    name = json.loads(claim or b"{}").get("source")
                except (ValueError, AttributeError):
                    continue
                if isinstance(name, str):
                    yield name

    def _send(self, kind: Kind, entry: Fields) -> None:
        self._client.xadd(self._stream(kind, entry["job"]), entry)

    def _entry(self, kind: Kind, job: int, enc: str, body: bytes, source: str = "0-hostile") -> Fields:
        self._seqs[job, source, kind] += 1
        about = {"v": 1, "job": job, "attempt": 1, "source": source, "seq": self._seqs[job, source, kind]}
        return {**about, "enc": enc, "body": body}

    def _stream(self, kind: Kind, job: int) -> str:
        return stream_key(kind, shard_of(job, SHARDS))

    def _own_job(self) -> int:
        return self._chance.choice(OWN_JOBS)

    def _honest_job(self) -> int:
        return self._chance.choice(HONEST_JOBS)


def bombs() -> Iterator[tuple[Kind, str, bytes]]:
    """Yield (kind, encoding, body) of messages that are small on the wire and large when they are decoded."""
    now = time.time_ns()
    maps = b"\xdd" + (15_000_000).to_bytes(4, "big") + b"\x80" * 15_000_000
    text = _pack("x" * 30_000_000)
    lists = b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x90" * 1_000_000
    for kind in KINDS:
        yield kind, "msgpack+zstd", zstandard.compress(maps)
        yield kind, "msgpack+zstd", zstandard.compress(b"\x91" * 10_000_000 + b"\x90")
        yield kind, "json+zstd", zstandard.compress(b"[" * 30_000_000)
        yield kind, "msgpack+zstd", zstandard.compress(b"\x00" * 2**28)
    yield (
        "metrics",
        "msgpack+zstd",
        zstandard.compress(b"\x82" + _pack("params") + lists + _pack("points") + b"\x90"),
    )
    yield (
        "metrics",
        "json+zstd",
        zstandard.compress(b'{"points": [], "params": {"a": [' + b"[]," * 5_000_000 + b"[]]}}"),
    )
    end = b"\x83" + _pack("ts") + _pack(now) + _pack("status") + _pack("failed") + _pack("error_message") + text
    yield "completions", "msgpack+zstd", zstandard.compress(end)
    saved = b"\x83" + _pack("ts") + _pack(now) + _pack("kind") + _pack("best") + _pack("uri") + text
    yield "checkpoints", "msgpack+zstd", zstandard.compress(saved)
    long = (
        b"\x83"
        + _pack("log_type")
        + _pack("stdout")
        + _pack("lines")
        + b"\x91"
        + text
        + _pack("ts")
        + _pack([now])
    )
    yield "logs", "msgpack+zstd", zstandard.compress(long)
    many = _pack({"log_type": "stdout", "lines": [""] * 3_000_000, "ts": [0] * 3_000_000})
    yield "logs", "msgpack+zstd", zstandard.compress(many)
    nul = _pack({"log_type": "stdout", "lines": ["a\x00b" * 1000] * 1000, "ts": [now] * 1000})
    yield "logs", "msgpack+zstd", zstandard.compress(nul)


def garbage(number: int) -> list[Fields]:
    """Return entries that no worker can store."""
    about = {"v": 1, "job": OWN_JOBS[0], "attempt": 1, "source": f"0-garbage{number}", "seq": 1}
    return [
        {"x": number},
        {**about, "enc": "msgpack", "body": b"\xc1" * 10},
        {**about, "enc": "rot13", "body": b"x"},
        {**about, "enc": "json", "body": b'{"log_type": "stdout", "lines": ["a"], "ts": []}'},
        {**about, "v": 99, "enc": "msgpack", "body": b"\x80"},
    ]


def main(url: str, seconds: float, seed: int, pause_s: float) -> None:
    """Send hostile entries for a number of seconds, and print the counts."""
    hostile = HostileEntries(url, seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends:
            hostile.act()
            time.sleep(pause_s)
    finally:
        print(f"sent {dict(hostile.sent)}, refused {dict(hostile.refused)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
