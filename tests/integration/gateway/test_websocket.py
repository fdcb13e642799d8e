"""The live feed over WebSocket, on real servers, with failures between the commit and the client."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.factories import NOW_NS, checkpoint, completion, logs, metrics
from tests.integration.gateway.feed_clients import GatewayProcess, Trainer, WebSocketClient
from tests.processes import wait_until
from trainwire.schemas.events import TrainingLog, encode_event
from trainwire.schemas.keys import events_channel
from trainwire.schemas.wire.messages import Metrics, Progress
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.workers.resources import Resources


def follow(gateway: GatewayProcess, trainer: Trainer, position: str | None = None) -> WebSocketClient:
    """Follow the trainer's job."""
    return WebSocketClient(gateway, f"/jobs/{trainer.job_id}/ws", position)


def test_a_client_gets_a_snapshot_and_then_live_events(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """The first frame has the job, its newest lines and its checkpoints; live events follow with their rows."""
    trainer.send(logs("one", "two"))
    trainer.send(checkpoint())
    with follow(feed_gateway, trainer) as client:
        first = client.take()
        assert (first["type"], first["job"]["id"], first["job"]["status"]) == (
            "snapshot",
            trainer.job_id,
            "running",
        )
        assert [row["uri"] for row in first["checkpoints"]] == ["s3://bucket/best.pt"]
        trainer.send(logs("three"))
        trainer.send(metrics(epoch=2, acc=0.5))
        trainer.send(completion(exit_code=0))
        client.until("metrics", 1)
        end = client.until_type("training_complete")
        assert end["exit_code"] == 0
        assert client.texts == ["one", "two", "three"]
        assert client.position == "3-1-1"


def test_a_client_comes_back_with_its_position(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """A reconnecting client gets the missed rows from Postgres, then new events, each row once."""
    trainer.send(logs(*(f"early {number}" for number in range(1500))))
    with follow(feed_gateway, trainer, "2-0-0") as client:
        assert client.take()["type"] == "resumed"
        client.until("logs", 1500)
        trainer.send(logs("live"))
        client.until("logs", 1501)
        assert len(client.texts) == 1499
        client.connection.close()
        trainer.send(logs("away"))
        client.connect()
        client.until("logs", 1502)
        assert client.texts[-2:] == ["live", "away"]


def test_the_url_of_a_websocket_is_not_logged(
    tmp_path: Path, database_url: str, redis_url: str, trainer: Trainer
) -> None:
    """The URL of a WebSocket is not logged, because clients may put a token into it."""
    trainer.send(logs("one"))
    with GatewayProcess(tmp_path, database_url, redis_url) as gateway:
        with connect(f"ws://127.0.0.1:{gateway.port}/jobs/{trainer.job_id}/ws?token=hush") as client:
            assert json.loads(client.recv(60))["event"]["type"] == "snapshot"
        gateway.end(signal.SIGTERM)
    assert f"/jobs/{trainer.job_id}" not in gateway.logged
    assert "hush" not in gateway.logged


def test_the_gateway_is_killed_and_comes_back(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """After a restart of the gateway a client resumes from its position without a gap."""
    trainer.send(logs("before"))
    with follow(feed_gateway, trainer) as client:
        client.take()
        feed_gateway.end()
        trainer.send(logs("while it was away"))
        with pytest.raises(ConnectionClosed):
            client.take()
        feed_gateway.start()
        client.connect()
        trainer.send(logs("after"))
        client.until("logs", 3)
        assert client.texts == ["before", "while it was away", "after"]


def test_rows_without_a_notification_are_found(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """A gap is filled at the next event, and a lost last event by the next poll of Postgres."""
    trainer.send(logs("first"))
    with follow(feed_gateway, trainer) as client:
        client.take()
        trainer.send(logs("silent"), announced=False)
        trainer.send(metrics(loss=1.0), announced=False)
        trainer.send(logs("loud"))
        client.until("logs", 3)
        trainer.send(logs("last words"), announced=False)
        trainer.send(Metrics(ts=NOW_NS, progress=Progress(current_epoch=3, total_epochs=4)), announced=False)
        trainer.send(completion("failed", exit_code=3, error_message="no"), announced=False)
        error = client.until_type("training_error")
        assert (error["exit_code"], error["error_message"], error["total_epochs_completed"]) == (3, "no", 3)
        client.until("logs", 4)
        client.until("metrics", 1)
        assert client.texts == ["first", "silent", "loud", "last words"]


def test_rows_beyond_the_size_of_an_event_are_filled(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """Lines that an event does not carry are read, and sent in batches of at most a thousand."""
    trainer.send(logs("begin"))
    with follow(feed_gateway, trainer) as client:
        client.take()
        trainer.send(logs(*(f"{number} {'x' * 100}" for number in range(3000))))
        client.until("logs", 3001)
        assert client.texts[1].startswith("0 x")
        assert client.texts[-1].startswith("2999 x")


def test_nonsense_on_the_channel_changes_nothing(
    feed_gateway: GatewayProcess, trainer: Trainer, resources: Resources
) -> None:
    """Invalid events, events of other jobs and events about missing rows are ignored."""
    trainer.send(logs("begin"))
    channel = events_channel(trainer.job_id)
    with follow(feed_gateway, trainer) as client:
        client.take()
        resources.redis.publish(channel, b"{")
        for job_id in (trainer.job_id, trainer.job_id + 1):
            claim = TrainingLog(job_id=job_id, attempt=1, kind="logs", first_seq=50, last_seq=60)
            resources.redis.publish(channel, encode_event(claim))
        trainer.send(logs("end"))
        client.until("logs", 2)
        assert client.texts == ["begin", "end"]


def test_redis_is_killed_and_comes_back(resources: Resources, trainer: Trainer, tmp_path: Path) -> None:
    """Lines are read from Postgres while Redis is unavailable, and arrive over Redis afterwards."""
    database_url = resources.settings.database_url.get_secret_value()
    with EmbeddedValkey(tmp_path) as valkey, GatewayProcess(tmp_path, database_url, valkey.url) as gateway:
        announcing = redis.Redis.from_url(valkey.url, socket_timeout=20)
        trainer.send(logs("begin"))
        with follow(gateway, trainer) as client:
            client.take()
            wait_until(lambda: _listeners(announcing, trainer) == 1, "a subscription")
            valkey.kill()
            trainer.send(logs("without Redis"), announced=False)
            client.until("logs", 2)
            valkey.start()
            wait_until(lambda: _listeners(announcing, trainer) == 1, "a new subscription")
            trainer.send(logs("with it"), announced=False)
            client.until("logs", 3)
            assert client.texts == ["begin", "without Redis", "with it"]
        announcing.close()


def test_a_client_that_does_not_read_gets_a_resync(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """A slow client gets resync, does not delay others, and misses nothing once it reconnects."""
    trainer.send(logs("begin"))
    with follow(feed_gateway, trainer) as reader, _deaf(feed_gateway, trainer) as deaf:
        reader.take()
        size = 0
        while size < 8_000_000:
            trainer.send(logs(*("x" * 8000 for _ in range(100))))
            size += 800_000
        last = 1 + size // 8000
        reader.until("logs", last)
        frames, code = _rest_of(deaf)
        assert frames[-1]["event"] == {"type": "resync"}
        assert code == 4008
        position = frames[-2]["position"]
        assert int(position.split("-")[0]) < last
    with follow(feed_gateway, trainer, position) as again:
        again.until("logs", last)


@pytest.mark.parametrize("after", ["nonsense", "1-2", "900-0-0"])
def test_a_wrong_position_is_refused(feed_gateway: GatewayProcess, trainer: Trainer, after: str) -> None:
    """A malformed position, or one beyond the job's rows, is closed with 4400."""
    trainer.send(logs("begin"))
    with connect(f"ws://127.0.0.1:{feed_gateway.port}/jobs/{trainer.job_id}/ws?after={after}") as connection:
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4400


@pytest.mark.parametrize("job_id", ["31337", "none", str(2**63), "-1"])
def test_an_unknown_job_is_refused(feed_gateway: GatewayProcess, job_id: str, resources: Resources) -> None:
    """A job without a stored message ends with 4404 and names the number."""
    assert resources
    with connect(f"ws://127.0.0.1:{feed_gateway.port}/jobs/{job_id}/ws") as connection:
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, job_id in closed.value.rcvd.reason) == (4404, True)


def test_many_clients_are_one_subscription(
    feed_gateway: GatewayProcess, trainer: Trainer, resources: Resources
) -> None:
    """A gateway has one subscriber in Redis for all its clients."""
    other = Trainer(resources, trainer.job_id + 500_000)
    for one in (trainer, other):
        one.send(logs("begin"))
    with (
        follow(feed_gateway, trainer) as first,
        follow(feed_gateway, trainer) as second,
        follow(feed_gateway, other) as third,
    ):
        for client in (first, second, third):
            client.take()
        subscribers = {line["addr"] for line in resources.redis.client_list(_type="pubsub")}
        assert len(subscribers & feed_gateway.addresses()) == 1
        trainer.send(logs("for two"))
        for client in (first, second):
            client.until("logs", 2)


def test_a_job_that_is_gone_ends_its_clients(
    feed_gateway: GatewayProcess, trainer: Trainer, resources: Resources
) -> None:
    """If the rows that clients have are not in Postgres any more, clients get resync."""
    trainer.send(logs("begin"))
    with follow(feed_gateway, trainer) as client:
        client.take()
        with resources.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM training_jobs")
        assert client.until_type("resync") == {"type": "resync"}


def _listeners(client: redis.Redis, trainer: Trainer) -> int:
    """Return the number of subscribers of the job's channel; 0 while Redis is unavailable."""
    try:
        ((_, count),) = client.pubsub_numsub(events_channel(trainer.job_id))
    except redis.ConnectionError:
        return 0
    return int(count)


def _deaf(gateway: GatewayProcess, trainer: Trainer) -> socket.socket:
    """Connect with small buffers, and never read."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", gateway.port))
    lines = (
        f"GET /jobs/{trainer.job_id}/ws HTTP/1.1",
        f"Host: 127.0.0.1:{gateway.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    deaf.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    return deaf


def _rest_of(deaf: socket.socket) -> tuple[list[dict[str, Any]], int]:
    """Read the remaining frames and the close code."""
    deaf.settimeout(30)
    data = b""
    while piece := deaf.recv(1 << 20):
        data += piece
        if data[-2:] == b"on" and b"\x88" in data[-130:]:
            break
    data = data.partition(b"\r\n\r\n")[2]
    frames = []
    while data[0] == 0x81:
        size, begin = data[1], 2
        if size >= 126:
            begin = 4 if size == 126 else 10
            size = int.from_bytes(data[2:begin])
        frames.append(json.loads(data[begin : begin + size]))
        data = data[begin + size :]
    assert data[0] == 0x88
    return frames, int.from_bytes(data[2:4])
