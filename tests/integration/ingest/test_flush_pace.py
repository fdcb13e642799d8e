"""Trainers send larger messages while the workers are behind, over Redis and over HTTPS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ingest.test_gateway_connection import ScriptedGateway
from trainwire import Run, TrainerSettings
from trainwire.ingest.sending.flush_pace import FlushPace
from trainwire.ingest.sending.transports.redis_connection import RedisConnection
from trainwire.ingest.settings.setting_groups import SpoolSettings
from trainwire.ingest.spool.listing import list_spool
from trainwire.schemas.keys import FREQUENT_KINDS, behind_key
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.exchange import CONTENT_TYPE, ExchangeAnswer, decode_answer, encode_exchange

Until = Callable[..., None]
SHARD = 2  # of job 42
BEHIND = behind_key("logs", SHARD)
FAR = 60_000


class OverRedis:
    """The streams of a Redis server, and how far its workers are behind."""

    def __init__(self, valkey: Any) -> None:
        self.url: str = valkey.url
        self._valkey = valkey

    def set_behind(self, behind_ms: int) -> None:
        """Publish that messages wait for `behind_ms`; 0 publishes nothing."""
        if behind_ms:
            self._valkey.client.set(BEHIND, behind_ms)
        else:
            self._valkey.client.delete(BEHIND)

    def messages(self) -> list[list[str]]:
        """Return the lines of each message that has arrived."""
        return [body.lines for _, body in self._valkey.entries("logs")]


class OverHttps:
    """A gateway that answers how far the workers are behind."""

    def __init__(self, gateway: ScriptedGateway) -> None:
        self.url = gateway.url
        self._gateway = gateway
        self._behind_ms = 0
        reply = gateway.reply

        def with_behind(body: bytes) -> Any:
            status, headers, content = reply(body)
            if status == 200:
                answer: ExchangeAnswer = decode_answer(content)
                answer.behind_ms = self._behind_ms
                content = encode_exchange(answer)
            return status, {**headers, "Content-Type": CONTENT_TYPE}, content

        gateway.reply = with_behind  # type: ignore[method-assign]

    def set_behind(self, behind_ms: int) -> None:
        """Answer that messages wait for `behind_ms`."""
        self._behind_ms = behind_ms

    def messages(self) -> list[list[str]]:
        """Return the lines of each message that has arrived."""
        found = []
        for request in self._gateway.requests:
            for entry in request.get("entries", {}).get("logs", []):
                fields = {
                    name.encode(): value if isinstance(value, bytes) else str(value).encode()
                    for name, value in entry.items()
                }
                body: Any = decode_body("logs", open_envelope(fields))
                found.append(body.lines)
        return found


@pytest.fixture(params=["redis", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[OverRedis | OverHttps]:
    """Give each transport in turn."""
    if request.param == "redis":
        yield OverRedis(request.getfixturevalue("valkey"))
    else:
        with ScriptedGateway() as gateway:
            yield OverHttps(gateway)


@contextmanager
def slow_run(server: Any, settings: TrainerSettings, until: Until, tmp_path: Path) -> Iterator[Run]:
    """Start a run, and wait until it collects messages for seconds, because the workers are far behind."""
    settings = replace(settings, redis_url=server.url, spool=SpoolSettings(tmp_path / "spool"))
    server.set_behind(FAR)
    run = Run(42, settings=settings)
    until(lambda: run._session._sender._pace.interval_s > 1 or run.log("warm-up"))
    try:
        yield run
    finally:
        run.finish()


def test_messages_become_larger_and_small_again(
    server: Any, settings: TrainerSettings, until: Until, tmp_path: Path
) -> None:
    """While the workers are behind, lines of several moments share a message; with room, each has its own."""
    with slow_run(server, settings, until, tmp_path) as run:
        for number in range(8):
            run.log(f"busy {number}")
            time.sleep(0.15)  # longer than the time after which lines are on the disk
        server.set_behind(0)
        until(lambda: not run._session._sender._pace.is_slow or run.log("meanwhile"))
        for number in range(3):
            run.log(f"quiet {number}")
            until(lambda number=number: [f"quiet {number}"] in server.messages())
    messages = server.messages()
    assert max(sum(line.startswith("busy") for line in lines) for lines in messages) > 1
    lines = [line for lines in messages for line in lines]
    assert [line for line in lines if line.startswith("busy")] == [f"busy {number}" for number in range(8)]


def test_what_waits_is_on_the_disk(server: Any, settings: TrainerSettings, until: Until, tmp_path: Path) -> None:
    """A line that is not sent for seconds is in the spool within about 200 ms."""
    with slow_run(server, settings, until, tmp_path) as run:
        until(lambda: run._session.outbox.is_all_sent)
        before = _spooled_bytes(tmp_path)
        run.log("waits")
        until(lambda: _spooled_bytes(tmp_path) > before)
        assert ["waits"] not in server.messages() or not run._session._sender._pace.is_slow
    assert any("waits" in lines for lines in server.messages())


def test_finish_sends_at_once(server: Any, settings: TrainerSettings, until: Until, tmp_path: Path) -> None:
    """The end of a run does not wait for the interval."""
    with slow_run(server, settings, until, tmp_path) as run:
        run._session._sender._pace = FlushPace(0.01, 3600.0)
        run.log("last words")
        run.finish()
    assert any("last words" in lines for lines in server.messages())


@pytest.mark.parametrize("published", ["garbage", "-1", "9" * 50, b"\xff", None])
def test_invalid_values_are_room(
    valkey: Any, settings: TrainerSettings, until: Until, published: str | bytes | None
) -> None:
    """A value that is not a number, or a key of another type, leaves the trainer as it was."""
    if published is None:
        valkey.client.lpush(BEHIND, "a list")
    else:
        valkey.client.set(BEHIND, published)
    run = Run(42, settings=settings)
    for number in range(5):
        run.log(f"line {number}")
        until(lambda number=number: valkey.lines("stdout")[-1:] == [f"line {number}"])
    assert not run._session._sender._pace.is_slow
    run.finish()


def test_a_refused_read_is_not_repeated(valkey: Any) -> None:
    """A Redis user whose rights are older reads everything else, and asks for this only once."""
    valkey.client.execute_command(
        *("ACL", "SETUSER", "old", "on", ">pw", "+@all", "~ingest:hold", "~ingest:shards", "~ingest:acks:*"),
        "~ingest:{*}:logs",
    )
    connection = RedisConnection(valkey.url.replace("//", "//old:pw@"), 42, "0-here")
    assert [connection.read_reports(["logs"]).behind_s for _ in range(3)] == [0, 0, 0]
    denied = [entry for entry in valkey.client.acl_log() if entry["username"] == "old"]
    assert sum(int(entry["count"]) for entry in denied) == len(FREQUENT_KINDS)
    connection.close()


def _spooled_bytes(tmp_path: Path) -> int:
    return sum(source.size_bytes for source in list_spool(tmp_path / "spool"))
