"""The parts of feed tests: a gateway process, its clients, and a trainer."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil
import urllib3
from websockets.sync.client import ClientConnection, connect

from tests.factories import Sender
from tests.forked_starts import StartedProcess, start_module
from tests.processes import END_S, START_TIMEOUT_S, wait_until
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of
from trainwire.schemas.wire.messages import KIND_OF_BODY, Body
from trainwire.stack.persisted_config import free_port
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.events.notify import events_of, publish
from trainwire.workers.resources import Resources

DEADLINE_S = 90
ITEMS = {"logs": "lines", "metrics": "points", "checkpoints": "checkpoints"}


class GatewayAddress:
    """Where a gateway listens."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"


class GatewayProcess(GatewayAddress):
    """`python -m trainwire.gateway` on a port that it keeps over restarts.

    `python` is that of an installed trainwire to run instead of this one.
    """

    def __init__(
        self, folder: Path, database_url: str, redis_url: str, *, python: str | None = None, **env: str
    ) -> None:
        super().__init__(free_port())
        self._python = python
        self._log = folder / "gateway.log"
        self._env = os.environ | {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_REQUESTS_PER_S": "1000",
            **env,
        }
        self._process: StartedProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def start(self) -> None:
        """Start it; return when it answers."""
        self.launch()
        wait_until(self._answers, f"a gateway on {self.url}: {self._log}", START_TIMEOUT_S)

    def launch(self) -> None:
        """Start it; return at once."""
        with self._log.open("ab") as log:
            self._process = start_module("trainwire.gateway", (), self._env, log, self._python)

    def is_running(self) -> bool:
        """Return whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def addresses(self) -> set[str]:
        """Return the local addresses of the gateway's connections to the servers."""
        assert self._process is not None
        sockets = psutil.Process(self._process.pid).net_connections("tcp")
        return {f"{one.laddr.ip}:{one.laddr.port}" for one in sockets if one.laddr}

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Kill it, by default with SIGKILL."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(END_S)
            self._process = None

    def restart(self) -> None:
        """Kill it and start it on the same port."""
        self.end()
        self.start()

    @property
    def logged(self) -> str:
        """The output of the process so far."""
        return self._log.read_text()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=20):
                return True
        except OSError:
            return False


class Trainer:
    """Stores rows of one job, with or without events."""

    def __init__(self, resources: Resources, job_id: int) -> None:
        self._resources = resources
        self._sender = Sender(resources.redis)
        self.job_id = job_id

    def send(self, body: Body, *, announced: bool = True, attempt: int = 1, source: str = "0-test") -> None:
        """Send a message, drain it, and publish its event."""
        kind = KIND_OF_BODY[type(body)]
        self._sender.send(body, job=self.job_id, attempt=attempt, source=source)
        stream = IngestStream(self._resources.redis, kind, shard_of(self.job_id, DEFAULT_SHARDS))
        committed: list[Change] = []
        Drain(self._resources.engine, stream, self._resources.settings, on_commit=committed.extend).run()
        if announced:
            publish(self._resources.redis, events_of(committed))


class Followed:
    """Receives events as a client; asserts that each row follows the last one of its kind."""

    def __init__(self, follow: Any, *, position: str | None = None) -> None:
        self._frames = follow
        self.position = position
        self.have = dict.fromkeys(ITEMS, 0)
        if position is not None:
            self.have = dict(zip(ITEMS, map(int, position.split("-")), strict=True))
        self.texts: list[str] = []
        self.states: list[dict[str, Any]] = []
        self.first: dict[str, Any] = {}

    def go_on(self, frames: Any) -> None:
        """Continue with another connection."""
        self._frames = frames

    def take(self) -> dict[str, Any]:
        """Wait for the next event and check it."""
        event: dict[str, Any]
        position, event = next(self._frames)
        if event["type"] in {"snapshot", "resumed"}:
            self.first = event
            if event["type"] == "snapshot" and position:
                self.have = dict(zip(ITEMS, map(int, position.split("-")), strict=True))
                self.texts += [line["text"] for line in event["logs"]]
        else:
            self._take_rows(event)
        self.position = position or self.position  # a resync has none: the client reconnects with the last one
        if event["type"] in {"training_status", "training_progress", "training_complete", "training_error"}:
            self.states.append(event)
        return event

    def until(self, kind: str, last: int) -> None:
        """Take events until this is the last row of a kind."""
        while self.have[kind] < last:
            self.take()

    def until_type(self, name: str) -> dict[str, Any]:
        """Take events until one of this type."""
        while (event := self.take())["type"] != name:
            pass
        return event

    def _take_rows(self, event: dict[str, Any]) -> None:
        for kind, field in ITEMS.items():
            items = event.get(field) or []
            have = self.have[kind]
            assert [item["seq"] for item in items] == list(range(have + 1, have + 1 + len(items)))
            self.have[kind] += len(items)
            if kind == "logs":
                self.texts += [line["text"] for line in items]


class WebSocketClient(Followed):
    """A client on a real WebSocket."""

    def __init__(self, gateway: GatewayAddress, path: str, position: str | None = None) -> None:
        super().__init__(self._received(), position=position)
        self._gateway, self._path = gateway, path
        self._stack = ExitStack()
        self.connection: ClientConnection
        self.connect()

    def connect(self) -> None:
        """Connect, at a reconnect with the position."""
        self.connect_to(self._gateway)

    def connect_to(self, gateway: GatewayAddress) -> None:
        """Connect to this gateway from now on, with the position."""
        self._gateway = gateway
        after = "" if self.position is None else f"?after={self.position}"
        url = f"ws://127.0.0.1:{gateway.port}{self._path}{after}"
        self._stack.close()
        self.connection = self._stack.enter_context(connect(url, max_size=None, close_timeout=1))
        self.go_on(self._received())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _received(self) -> Iterator[tuple[str | None, dict[str, Any]]]:
        while True:
            frame = json.loads(self.connection.recv(timeout=DEADLINE_S))
            yield frame.get("position"), frame["event"]


class EventSource(Followed):
    """A client on server-sent events."""

    def __init__(self, gateway: GatewayAddress, path: str, last_event_id: str | None = None) -> None:
        super().__init__(self._events(), position=last_event_id)
        self._path = path
        self._pool = urllib3.PoolManager()
        self.response: urllib3.BaseHTTPResponse
        self.connect_to(gateway)

    def connect_to(self, gateway: GatewayAddress) -> None:
        """Connect to this gateway, with the position."""
        headers = {} if self.position is None else {"Last-Event-ID": self.position}
        self._pool.clear()
        self.response = self._pool.request(
            "GET",
            gateway.url + self._path,
            headers=headers,
            preload_content=False,
            timeout=DEADLINE_S,
            retries=False,
        )
        self.go_on(self._events())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, RuntimeError):  # it has ended
            self.response.shutdown()  # wakes a thread that waits for more
        self.response.close()
        self._pool.clear()

    def _events(self) -> Iterator[tuple[str | None, dict[str, Any]]]:
        data = b""
        for piece in iter(partial(self.response.read1, 65536), b""):
            *events, data = (data + piece).split(b"\n\n")
            for event in events:
                fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
                if "data" in fields:
                    body_of_event = json.loads(fields["data"])
                    assert body_of_event["type"] == fields["event"]
                    yield fields.get("id"), body_of_event
