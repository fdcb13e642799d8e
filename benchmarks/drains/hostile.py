"""Measures the peak memory and CPU time of a drain for entries that are crafted to be expensive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import msgpack
import psutil
import zstandard
from sqlalchemy import text

from benchmarks.processes import POLL_S, ROOT
from benchmarks.stores import empty
from tests.processes import server_variables
from trainwire.schemas.keys import DEFAULT_SHARDS, Kind, shard_of, stream_key
from trainwire.workers.resources import Resources

JOB: Final = 1
_NOW_NS: Final = 1_790_000_000_000_000_000


@dataclass(frozen=True)
class Cost:
    """Peak memory and CPU seconds of a drain of one entry.

    `outcome` is the number of its rows, or the reason of its dead letter.
    """

    peak_mb: float
    cpu_s: float
    outcome: str


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _array(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


def _logs(lines: bytes, times: bytes) -> bytes:
    return b"\x83" + _pack("log_type") + _pack("stdout") + _pack("lines") + lines + _pack("ts") + times


def _params(value: bytes) -> bytes:
    return b"\x81" + _pack("params") + b"\x81\xa1a" + value


def cases() -> Iterator[tuple[str, Kind, str, bytes]]:
    """Yield (name, kind, encoding, uncompressed body) of each entry."""
    point = _pack({"ts": 1, "values": {}})
    wide = {"ts": _NOW_NS, "values": {f"metric {n}": 1.0 for n in range(100_000)}}
    yield "one line (nothing hostile)", "logs", "msgpack", _logs(_pack(["x"]), _pack([_NOW_NS]))
    yield "15,000,000 empty maps", "checkpoints", "msgpack+zstd", _array(15_000_000) + b"\x80" * 15_000_000
    yield "params of 1,000,000 empty lists", "metrics", "msgpack+zstd", _params(_array(10**6) + b"\x90" * 10**6)
    yield "params of 99,000 empty lists", "metrics", "msgpack+zstd", _params(_array(99_000) + b"\x90" * 99_000)
    error = {"ts": _NOW_NS, "status": "failed", "error_message": "x" * 30_000_000}
    yield "error_message of 30 MB", "completions", "msgpack+zstd", _pack(error)
    path = {"points": [{"ts": 1, "values": {}, "checkpoint_path": "x" * 30_000_000}]}
    yield "checkpoint_path of 30 MB", "metrics", "msgpack+zstd", _pack(path)
    yield (
        "1,000,000 points of nothing",
        "metrics",
        "msgpack+zstd",
        (b"\x81" + _pack("points") + _array(10**6) + point * 10**6),
    )
    yield (
        "100,000 points of nothing",
        "metrics",
        "msgpack+zstd",
        (b"\x81" + _pack("points") + _array(10**5) + point * 10**5),
    )
    yield "100,000 names in a point", "metrics", "msgpack+zstd", _pack({"points": [wide]})
    yield (
        "1,000,000 empty lines",
        "logs",
        "msgpack+zstd",
        _logs(_array(10**6) + b"\xa0" * 10**6, _array(10**6) + b"\x01" * 10**6),
    )
    yield (
        "100,000 empty lines",
        "logs",
        "msgpack+zstd",
        _logs(_array(10**5) + b"\xa0" * 10**5, _array(10**5) + b"\x01" * 10**5),
    )
    line = "x" * 15_000_000 + "\U0001f600"
    yield "two lines of 15 MB, an emoji in each", "logs", "msgpack+zstd", _logs(_pack([line] * 2), _pack([1, 2]))
    yield "nested 1,000,000 deep", "metrics", "msgpack+zstd", _params(b"\x91" * 10**6 + b"\x90")
    yield "300 MB of zeros", "logs", "msgpack+zstd", bytes(300_000_000)
    yield "40 MB without compression", "logs", "msgpack", _logs(_pack(["x" * 40_000_000]), _pack([1]))
    yield "JSON, 10,000,000 maps", "metrics", "json+zstd", b'{"params":{"a":[' + b"{}," * 10**7 + b"{}]}}"
    points = b",".join([b'{"ts":1,"values":{"a":1}}'] * 10**5)
    yield "JSON, 100,000 points", "metrics", "json+zstd", b'{"points":[' + points + b"]}"
    yield "JSON, an int of 10,000,000 digits", "checkpoints", "json+zstd", b'{"ts":' + b"1" * 10**7 + b"}"
    yield (
        "JSON, 5,000,000 NULs in a line",
        "logs",
        "json+zstd",
        (b'{"log_type":"stdout","lines":["' + b"\\u0000" * 5_000_000 + b'"],"ts":[1]}'),
    )


def cost(resources: Resources, kind: Kind, encoding: str, body: bytes) -> Cost:
    """Append one entry to its stream, drain it in another process, and return the cost."""
    empty(resources)
    body = zstandard.compress(body, 3) if encoding.endswith("+zstd") else body
    entry = {"v": 1, "job": JOB, "attempt": 1, "source": "hostile", "seq": 1, "enc": encoding, "body": body}
    resources.redis.xadd(stream_key(kind, shard_of(JOB, DEFAULT_SHARDS)), cast("Any", entry))
    env = os.environ | {
        **server_variables(resources.settings),
        "LOKI_ENABLED": "false",
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "trainwire.workers", "sweep"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak, cpu = 0, 0.0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            times = watched.cpu_times()
            peak, cpu = max(peak, watched.memory_info().rss), times.user + times.system
        except psutil.Error:
            break
        time.sleep(POLL_S)
    process.wait()
    return Cost(peak / 2**20, cpu, _outcome(resources))


def _outcome(resources: Resources) -> str:
    with resources.engine.connect() as connection:
        reason = connection.execute(text("SELECT reason FROM dead_letters")).scalar()
        stored = connection.execute(
            text("SELECT (SELECT count(*) FROM training_logs) + (SELECT count(*) FROM training_metrics)")
        ).scalar_one()
    return str(reason) if reason else f"{stored:,} rows"
