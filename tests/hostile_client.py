"""A hostile client with a trainer's password: every command that the user may run, with odd arguments.

It writes only for jobs of its own: Redis' rights cannot prevent writes for jobs of others (SECURITY.md).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from trainwire.schemas.keys import (
    HOLD_KEY,
    INGEST_QUEUE,
    KINDS,
    NOTIFY_QUEUE,
    SHARDS_KEY,
    acks_key,
    alive_key,
    behind_key,
    stream_key,
)

FIRST_JOB: Final = 666_000
JOBS: Final = 40
MAX_ID: Final = 2**64 - 1
COMMANDS_PER_S: Final = 40.0
JAMS_EVERY_S: Final = 5.0
"""Seconds between two attacks that jam or empty a stream; with every command no other trainer could send."""

Command = tuple[Any, ...]

ODD_VALUES: Final[Sequence[bytes | str | int | float]] = (
    *("", "x", "\x00", "[]", "{}", "null", "NaN", "-1", "9" * 400, "é" * 100, "a" * 100_000),
    *(b"\xff\xfe", b"\x00" * 1000, b"\x80", 0, -1, 2**63, MAX_ID, 1e308),
)
STRAY_SHARDS: Final = ("4", "9", "999999", "-1", "007", "foo", "", "9" * 30, "0}:callbacks:1:{0", "\xff", "0 ")
HARMLESS_IDS: Final = ("*", "*", "*", "0-0", "0-1", "1-*", "5-5", "-", "+", "$", ">", "x", "", "1-2-3", "-1")
JAMMING_IDS: Final = (
    f"{MAX_ID}-{MAX_ID}",
    f"{MAX_ID}-*",
    f"{MAX_ID}-0",
    f"{MAX_ID - 1}-{MAX_ID}",
    "9999999999999-*",
)
EMPTYING: Final[Sequence[Command]] = (("MAXLEN", 0), ("MAXLEN", "=", 0), ("MINID", MAX_ID), ("MINID", "=", MAX_ID))
HARMLESS_OPTIONS: Final[Sequence[Command]] = (
    *((), (), (), ("NOMKSTREAM",), ("MAXLEN", "~", 10**9), ("MINID", 0), ("MAXLEN", -1), ("MAXLEN", "x")),
    *(("MINID", "~", 0, "LIMIT", 1), ("MAXLEN", "=", 10**9, "LIMIT", 5), ("KEEPREF",), ("NOMKSTREAM", "MAXLEN")),
)
SET_OPTIONS: Final[Sequence[Command]] = (
    *((), ("NX",), ("XX",), ("GET",), ("KEEPTTL",), ("NX", "GET"), ("EX", 0), ("EX", -1), ("EX", 2**62)),
    *(("PX", 1), ("PX", 10**15), ("EXAT", 1), ("EXAT", 2**40), ("PXAT", 2**50), ("NX", "XX"), ("EX", "x")),
)
FORBIDDEN: Final[Sequence[Command]] = (
    *(("LPUSH", INGEST_QUEUE, "x"), ("RPUSH", INGEST_QUEUE, "[]"), ("LPUSH", NOTIFY_QUEUE, "{}"), ("FLUSHALL",)),
    *(
        ("SET", SHARDS_KEY, 1),
        ("SET", HOLD_KEY, 1),
        ("SET", behind_key("logs", 0), 1),
        ("SET", INGEST_QUEUE, 1),
        ("DEL", INGEST_QUEUE),
        ("KEYS", "*"),
    ),
    *(("SET", stream_key("logs", 0), 1), ("DEL", stream_key("logs", 0)), ("SCAN", 0), ("RANDOMKEY",)),
    *(("SET", stream_key("logs", 0) + ":bell", 1), ("SET", stream_key("logs", 0) + ":ordered", 1)),
    *(("XREAD", "STREAMS", stream_key("logs", 0), 0), ("XRANGE", stream_key("logs", 0), "-", "+")),
    *(("XTRIM", stream_key("logs", 0), "MAXLEN", 0), ("XDEL", stream_key("logs", 0), "1-1")),
    *(
        ("XSETID", stream_key("logs", 0), f"{MAX_ID}-{MAX_ID}"),
        ("XGROUP", "CREATE", stream_key("logs", 0), "g", 0),
    ),
    *(("XADD", "elsewhere", "*", "v", 1), ("XADD", INGEST_QUEUE, "*", "v", 1), ("HGETALL", alive_key(0))),
    *(("HSET", acks_key(1), "x", 1), ("HGETALL", acks_key(1)), ("HSET", "ingest:halted", "x", 1)),
    *(("PUBLISH", "events:1", "{}"), ("PUBLISH", "/0.celery.pidbox", "[]"), ("SUBSCRIBE", "events:1")),
    *(
        ("EVAL", "return 1", 0),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "x"),
    ),
    *(("CLIENT", "PAUSE", 1000), ("MONITOR",), ("MULTI",), ("SELECT", 1), ("INFO",), ("DEBUG", "SLEEP", 1)),
    *(("COPY", stream_key("logs", 0), "x"), ("RENAME", stream_key("logs", 0), "x"), ("SHUTDOWN",), ("SAVE",)),
)


@dataclass
class Report:
    """Counts of the commands that were tried and accepted, and the effects that should have been impossible."""

    tried: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """By the first word of the error message."""
    forbidden_but_taken: list[Command] = field(default_factory=list)
    claims_read: set[bytes] = field(default_factory=set)
    """The values of other trainers' claims that could be read."""


class HostileClient:
    """Sends odd commands one after another, in an order that a seed decides."""

    def __init__(self, url: str, seed: int, *, shards: int = 4, victims: Sequence[int] = range(1, 100)) -> None:
        self._chance = random.Random(seed)
        self._shards = shards
        self._victims = victims
        self._client = redis.Redis.from_url(url, socket_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2)
        self._client.response_callbacks.clear()  # replies are not parsed: errors and odd values are expected
        self._url = url
        self._seqs: Counter[tuple[int, str]] = Counter()
        self.report = Report()

    def act(self) -> None:
        """Send one odd command that does not stop others."""
        pick: Callable[[], Command] = self._chance.choice(
            [self.valid, self.append, self.append, self.append, self.stray, self.heartbeat, self.claim, self.read]
        )
        self.send(pick())
        if self._chance.random() < 0.2:
            self.send_forbidden(self._chance.choice(FORBIDDEN))
        if self._chance.random() < 0.05:
            self.greet()

    def jam(self) -> None:
        """Jam a stream, empty one, or do both at once."""
        key, options = self._stream(), self._chance.choice(((), *EMPTYING))
        self.send(("XADD", key, *options, self._chance.choice(("*", *JAMMING_IDS)), *self._odd_fields()))

    def send(self, command: Command) -> Any:
        """Send a command, count the result, and return the reply, None for an error."""
        name = str(command[0])
        self.report.tried[name] += 1
        try:
            reply = self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except redis.RedisError as exc:
            self.report.refused[str(exc).partition(" ")[0] if str(exc) else type(exc).__name__] += 1
            return None
        self.report.taken[name] += 1
        return reply

    def send_forbidden(self, command: Command) -> None:
        """Send a command that the user may not run; record it if the server accepts it."""
        self.report.tried[f"forbidden {command[0]}"] += 1
        try:
            self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            self.report.refused["NOPERM"] += 1
        except redis.ConnectionError:
            self.report.refused["connection"] += 1
        except redis.RedisError as exc:
            self.report.refused[str(exc).partition(" ")[0]] += 1
        else:
            self.report.forbidden_but_taken.append(command)

    def greet(self) -> None:
        """Connect and send the greetings that Redis takes before and after a password."""
        greetings: Sequence[Command] = (
            *(
                ("HELLO",),
                ("HELLO", 3),
                ("HELLO", 99),
                ("HELLO", 2, "SETNAME", "x"),
                ("HELLO", 3, "AUTH", "worker", "x"),
            ),
            *(
                ("PING", "x" * 100_000),
                ("TIME",),
                ("CLIENT", "SETINFO", "lib-name", "x"),
                ("AUTH", "worker", "worker1"),
            ),
            *(
                ("CLIENT", "SETINFO", "lib-ver", "\n"),
                ("CLIENT", "SETINFO", "odd", "x"),
                ("RESET",),
                ("PING", "a", "b"),
            ),
        )
        with redis.Redis.from_url(self._url, socket_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2) as client:
            command = self._chance.choice(greetings)
            self.report.tried[str(command[0])] += 1
            try:
                client.execute_command(*command)
            except (redis.RedisError, ValueError, TypeError, AttributeError) as exc:
                self.report.refused[type(exc).__name__] += 1

    def append(self) -> Command:
        """Return an XADD to a workers' stream that is odd in its id, its options or its fields."""
        options, entry_id = self._chance.choice(HARMLESS_OPTIONS), self._chance.choice(HARMLESS_IDS)
        return ("XADD", self._stream(), *options, entry_id, *self._odd_fields())

    def valid(self) -> Command:
        """Return an XADD of a valid message of an own job."""
        job, source = FIRST_JOB + self._chance.randrange(JOBS), f"0-hostile{self._chance.randrange(5)}"
        self._seqs[job, source] += 1
        body = json.dumps({"log_type": "stdout", "lines": ["hostile"], "ts": [time.time_ns()]})
        fields = ("v", 1, "job", job, "attempt", 1, "source", source, "seq", self._seqs[job, source])
        return ("XADD", stream_key("logs", job % self._shards), "*", *fields, "enc", "json", "body", body)

    def stray(self) -> Command:
        """Return an XADD to a stream of no shard."""
        shard, kind = self._chance.choice(STRAY_SHARDS), self._chance.choice(KINDS)
        fields = self.valid()[3:] if self._chance.random() < 0.5 else self._odd_fields()
        return ("XADD", f"ingest:{{{shard}}}:{kind}", self._chance.choice(("*", *JAMMING_IDS)), *fields)

    def heartbeat(self) -> Command:
        """Return an HSET or HDEL of heartbeats, of an existing or unknown shard."""
        shard = self._chance.choice((*map(str, range(self._shards)), *STRAY_SHARDS))
        key, job = f"ingest:{{{shard}}}:alive", FIRST_JOB + self._chance.randrange(JOBS)
        beat = {"job": job, "source": "0-hostile", "at": self._odd(), "host": "x", "every_s": self._odd()}
        values = [self._odd(), json.dumps(beat, default=repr), json.dumps({**beat, "at": 2**62, "every_s": 1e9})]
        fields = [self._odd(), f"{job}:0-hostile", f"{self._chance.choice(self._victims)}:0-0"]
        if self._chance.random() < 0.3:
            return ("HDEL", key, *(self._chance.choice(fields) for _ in range(self._chance.randrange(1, 4))))
        pairs = [(self._chance.choice(fields), self._chance.choice(values)) for _ in range(3)]
        return ("HSET", key, *(item for pair in pairs for item in pair))

    def claim(self) -> Command:
        """Return a GET or SET of claims, also of another trainer."""
        job = self._chance.choice((*self._victims, FIRST_JOB, self._odd()))
        key = f"ingest:claims:{job!s:.200}:{self._chance.choice((0, 1, -1))}:{self._chance.randrange(3)}:"
        if self._chance.random() < 0.5:
            return ("GET", key)
        return ("SET", key, self._odd(), *self._chance.choice(SET_OPTIONS))

    def read(self) -> Command:
        """Return a command that reads data open to trainers, after reading the claims of some victims."""
        for job in self._chance.sample(list(self._victims), min(5, len(self._victims))):
            for attempt in (0, 1):
                found = self.send(("GET", f"ingest:claims:{job}:{attempt}:0:"))
                if found:
                    self.report.claims_read.add(found)
        job = self._chance.choice(self._victims)
        return self._chance.choice(
            [
                ("HMGET", acks_key(job), *(self._odd() for _ in range(3))),
                ("HMGET", acks_key(job), *("x",) * 10_000),
                ("GET", SHARDS_KEY),
                ("EXISTS", HOLD_KEY),
                ("GET", behind_key("logs", self._chance.randrange(self._shards))),
                ("EXISTS", *(HOLD_KEY,) * 1000),
                ("TIME",),
            ]
        )

    def _stream(self) -> str:
        return stream_key(self._chance.choice(KINDS), self._chance.randrange(self._shards))

    def _odd(self) -> Any:
        return self._chance.choice(ODD_VALUES)

    def _odd_fields(self) -> Command:
        valid = list(self.valid()[3:])
        match self._chance.randrange(5):
            case 0:
                return (self._odd(), self._odd())
            case 1:
                return tuple(self._odd() for _ in range(2 * self._chance.randrange(1, 50)))
            case 2:
                return ("v",) * 3
            case 3:
                del valid[(at := 2 * self._chance.randrange(len(valid) // 2)) : at + 2]
            case _:
                valid[2 * self._chance.randrange(len(valid) // 2) + 1] = self._odd()
        return tuple(valid)


def attack(
    url: str,
    seconds: float,
    seed: int = 0,
    *,
    shards: int = 4,
    victims: Sequence[int] = range(1, 100),
    per_s: float = COMMANDS_PER_S,
    jams_every_s: float = JAMS_EVERY_S,
) -> Report:
    """Attack a server as its user `trainer` for `seconds`, and return the report.

    `victims` are jobs of honest trainers: their claims are read and overwritten, and nothing is written for them.
    A stream is jammed or emptied every `jams_every_s`; 0 is never.
    """
    client = HostileClient(url, seed, shards=shards, victims=victims)
    began = time.monotonic()
    next_jam = began + jams_every_s if jams_every_s else float("inf")
    with suppress(KeyboardInterrupt):
        while (now := time.monotonic()) < began + seconds:
            if now >= next_jam:
                next_jam = now + jams_every_s
                client.jam()
            client.act()
            time.sleep(1 / per_s)
    return client.report


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("url")
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the report is printed all the same
    print(attack(options.url, options.seconds, options.seed))
