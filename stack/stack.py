"""Runs the stack of one data folder: starts servers, migrates the schema, starts workers and web servers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from trainwire.ingest.settings.variables import STREAMS_URL_VARIABLE
from trainwire.schemas.keys import ALERT_QUEUE, BEAT_QUEUE, CHECKPOINT_QUEUE, INGEST_QUEUE, NOTIFY_QUEUE
from trainwire.schemas.sinks import SINKS
from trainwire.stack.child import Child, stop_leftover
from trainwire.stack.database import forget_outages, migrate, settings_for, sinks_for
from trainwire.stack.errors import PartFailed
from trainwire.stack.folders import chosen_data_dir, publish, withdraw
from trainwire.stack.fork_server import TITLE_SPACE, ForkServer
from trainwire.stack.locate import Address
from trainwire.stack.persisted_config import Port, is_embedded_url, moved
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.recorded_settings import recorded_settings
from trainwire.stack.server import EmbeddedServer
from trainwire.stack.supervisor import CommandPart, Report, Supervisor
from trainwire.stack.valkey import EmbeddedValkey

WORKER_STOP_TIMEOUT_S: Final = 10.0
WEB_READY_TIMEOUT_S: Final = 60.0
"""Seconds; on a busy machine imports alone take 30 s. A slower server is announced when it is ready."""
WEB_STOP_TIMEOUT_S: Final = 2.0
"""Seconds; short, because web servers store no data."""
GATEWAY_PORT: Final = 8800
METRICS_PORT: Final = 9464
FLOWER_PORT: Final = 5555
EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - accepted as an option, not a default
LEFTOVER_TIMEOUT_S: Final = 15.0
STOP_ORDER: Final = (
    *("metrics", "gateway", "flower", "beat", "alerts", "checkpoints", "notifier"),
    *(sink.worker for sink in SINKS.values()),
    *("worker", "fork-server", "valkey", "postgres"),
)
STORE_QUEUES: Final = f"{INGEST_QUEUE},{BEAT_QUEUE}"


@dataclass(frozen=True)
class StackOptions:
    """The command-line options of `trainwire up`; a `concurrency` of None is the worker's default."""

    data_dir: Path
    concurrency: int | None = None
    with_flower: bool = True
    with_gateway: bool = True
    with_metrics: bool = True


Launch = Callable[[int], tuple[Sequence[str], Mapping[str, str]]]
"""Returns the command and the environment with which a web server listens on the given port."""


class WebPart:
    """A web server process of the stack. It has a port of its own, and is ready when it listens on that port."""

    is_store: Final = False

    def __init__(self, name: str, data_dir: Path, port: Port, launch: Launch, host: str = "127.0.0.1") -> None:
        self.name = name
        self.child = Child(name, data_dir, stop_timeout_s=WEB_STOP_TIMEOUT_S)
        self._host = "127.0.0.1" if host in EVERY_ADDRESS else host
        self._port = port
        self._launch = launch

    @property
    def url(self) -> str:
        """The URL for a browser."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port.number}"

    @property
    def moved(self) -> str | None:
        """A sentence for the terminal if the server does not listen on its usual port; None if it does."""
        return moved(self._port)

    def start(self) -> None:
        """Start the web server and wait until it accepts connections.

        Raises `PartFailed` if that takes more than WEB_READY_TIMEOUT_S; the process then continues to start.
        """
        self._port.start(self._start_once)

    def is_ready(self) -> bool:
        """Return whether the web server accepts connections."""
        return self.child.listens_on(self._port.number)

    def _start_once(self) -> None:
        self.child.start(*self._launch(self._port.number))
        self.child.wait_ready(self.is_ready, WEB_READY_TIMEOUT_S)


class Stack:
    """All processes that `trainwire up` runs. The caller must hold the lock of the data folder.

    `say` is called with each line of text for the terminal.
    """

    def __init__(self, options: StackOptions, environ: Mapping[str, str], say: Report) -> None:
        self._options = options
        self._environ = environ
        self._say = say
        self._supervisor = Supervisor(say)
        self._late: dict[str, WebPart] = {}
        self._fork_server: ForkServer | None = None
        self.address = Address(data_dir=options.data_dir)

    def start(self) -> None:
        """Start all processes and publish their addresses; raise `Problem` if a store does not become ready.

        The address of a web server that is not ready after WEB_READY_TIMEOUT_S is published later, by `watch`.
        """
        self._stop_leftovers()
        database_url = self._start_store("DATABASE_URL", EmbeddedPostgres)
        redis_url = self._start_store("REDIS_URL", EmbeddedValkey)
        self.address = Address(database_url, redis_url, data_dir=self._options.data_dir)
        if self._supervisor.stop_requested:
            return
        migrate(self.address)
        self._say("postgres: tables are at the newest schema revision")
        if not self._environ.get("DATABASE_URL"):  # the workers of a server of the user may run elsewhere
            forget_outages(self.address)
        env = dict(self._environ) | {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        self._start_workers(env)
        self._publish()  # trainers need no web server
        self._start_webs(env)
        self._publish()

    def watch(self) -> None:
        """Restart processes that end, until a stop is requested."""
        self._supervisor.watch(self._announce_late)

    def request_stop(self) -> None:
        """Make `start` return or raise `PartFailed` soon, and `watch` return; safe in a signal handler."""
        self._supervisor.request_stop()

    @property
    def late(self) -> list[str]:
        """The names of the web servers of the stack that do not accept connections yet."""
        return list(self._late)

    @property
    def stop_requested(self) -> bool:
        """Whether `request_stop` was called."""
        return self._supervisor.stop_requested

    def stop(self) -> None:
        """Withdraw the addresses, then stop all processes, the stores last, each within its timeout."""
        withdraw(self._options.data_dir, self._environ)
        self._supervisor.stop()

    def kill(self) -> None:
        """Send SIGKILL to all processes."""
        self._supervisor.kill()

    def _start_store(self, variable: str, store: type[EmbeddedPostgres | EmbeddedValkey]) -> str:
        """Return the URL of the user's server if `variable` has one; otherwise start an embedded store."""
        if url := self._given(variable, store.name):
            return url
        server = store(self._options.data_dir)
        self._supervisor.start(server)
        self._say_moved(server)
        return server.url

    def _given(self, variable: str, part: str) -> str | None:
        """Return the URL in the environment variable `variable` if the user chose a server with it.

        Returns None if the variable is not set, or if `trainwire env` exported it, so that it names an embedded
        server.
        """
        url = self._environ.get(variable)
        if not url:
            return None
        exported_by = chosen_data_dir(None, self._environ) or self._options.data_dir
        for folder in {self._options.data_dir, exported_by}:
            if is_embedded_url(folder, part, url):
                self._say(f"{part}: {variable} is from `trainwire env` of {folder}: starting our own server")
                return None
        self._say(f"{part}: using the server that {variable} names")
        return url

    def _start_workers(self, env: Mapping[str, str]) -> None:
        chosen = self._options.concurrency
        concurrency = [] if chosen is None else ["--concurrency", str(chosen)]
        ingest = ["--queues", STORE_QUEUES, *concurrency]
        self._start_fork_server(env)
        self._start_command("worker", workers_command("worker", *ingest), env)
        # Separate workers: a slow sink or S3 must not delay drains, nor a long drain the events.
        alone_on = {sink.worker: sink.queue for sink in sinks_for(settings_for(self.address))}
        alone_on |= {"notifier": NOTIFY_QUEUE, "checkpoints": CHECKPOINT_QUEUE}
        if env.get("ALERT_RULES"):
            alone_on["alerts"] = ALERT_QUEUE
        for name, queue in alone_on.items():
            alone = ["--name", name, "--queues", queue, "--concurrency", "1"]
            self._start_command(name, workers_command("worker", *alone), env)
        self._start_command("beat", workers_command("beat"), env)

    def _start_fork_server(self, env: Mapping[str, str]) -> None:
        if ForkServer.is_possible():
            command = workers_command("fork-server", TITLE_SPACE)
            self._fork_server = ForkServer(command, self._options.data_dir, env)
            self._supervisor.start(self._fork_server)

    def _start_command(self, name: str, command: list[str], env: Mapping[str, str]) -> None:
        opener = None if self._fork_server is None else self._fork_server.open_process
        timeout_s = WORKER_STOP_TIMEOUT_S
        part = CommandPart(name, command, self._options.data_dir, env=env, stop_timeout_s=timeout_s, opener=opener)
        self._supervisor.start(part)

    def _start_webs(self, env: Mapping[str, str]) -> None:
        """Start the web servers in parallel, because imports take seconds; add the addresses of the ready ones."""
        options, parts = self._options, {}
        if options.with_flower:
            parts["flower"] = self._workers_web("flower", FLOWER_PORT, env)
        if options.with_gateway:
            parts["gateway"] = self._gateway(env, parts.get("flower"))
        if options.with_metrics:
            parts["metrics"] = self._workers_web("metrics", METRICS_PORT, env)
        linked = parts["flower"].url if options.with_flower else None
        with ThreadPoolExecutor(len(parts) or 1) as pool:
            list(pool.map(lambda part: self._try(part, partial(self._supervisor.start, part)), parts.values()))
        if options.with_flower and options.with_gateway and parts["flower"].url != linked:
            parts["gateway"].child.stop()  # its page links to Flower's old port
            self._try(parts["gateway"], parts["gateway"].start)
        for name, part in parts.items():
            if part.is_ready():
                self._set_address(part)
                self._say_moved(part)
            else:
                self._late[name] = part

    def _say_moved(self, part: WebPart | EmbeddedServer) -> None:
        if part.moved is not None:
            self._say(f"{part.name}: {part.moved}")

    def _workers_web(self, name: str, first_port: int, env: Mapping[str, str]) -> WebPart:
        """Return a web server of the package `workers`: Flower or the Prometheus exporter."""
        port = Port(self._options.data_dir, name, first=first_port)
        return WebPart(
            name, self._options.data_dir, port, lambda number: (workers_command(name, "--port", str(number)), env)
        )

    def _gateway(self, env: Mapping[str, str], flower: WebPart | None) -> WebPart:
        chosen, host = env.get("GATEWAY_PORT") or "", env.get("GATEWAY_HOST") or "127.0.0.1"
        fixed = int(chosen) if chosen.isdecimal() and int(chosen) else None

        def launch(port: int) -> tuple[Sequence[str], Mapping[str, str]]:
            link = {} if flower is None else {"GATEWAY_FLOWER_URL": flower.url}
            # The gateway itself reports a port that is not a number.
            own = {"GATEWAY_PORT": chosen if chosen and not chosen.isdecimal() else str(port)}
            return python_command("trainwire.gateway"), {**link, **env, **own}

        port = Port(self._options.data_dir, "gateway", host=host, first=GATEWAY_PORT, fixed=fixed)
        return WebPart("gateway", self._options.data_dir, port, launch, host)

    def _try(self, part: WebPart, start: Callable[[], None]) -> None:
        try:
            start()
        except PartFailed as exc:
            # The pipeline works without it. The supervisor restarts one that ended; a running one is only slow.
            slow = f"still starting after {WEB_READY_TIMEOUT_S:g} s (log: {part.child.log_path})"
            self._say(f"{part.name}: {slow if part.child.is_running() else exc}")

    def _announce_late(self) -> None:
        """Publish the addresses of web servers that have become ready since the last call."""
        for name, part in list(self._late.items()):
            if part.is_ready():
                del self._late[name]
                self._set_address(part)
                self._publish()
                self._say(f"{name}: ready at {part.url}")

    def _set_address(self, part: WebPart) -> None:
        url: dict[str, Any] = {f"{part.name}_url": part.url + ("/metrics" if part.name == "metrics" else "")}
        self.address = replace(self.address, **url)

    def _stop_leftovers(self) -> None:
        for name in STOP_ORDER:
            how = signal.SIGINT if name == "postgres" else signal.SIGTERM
            if stop_leftover(self._options.data_dir / "run" / f"{name}.json", how, LEFTOVER_TIMEOUT_S):
                self._say(f"{name}: stopped a leftover of a killed `trainwire up`")

    def _publish(self) -> None:
        urls = self.address.urls | {"streams_url": self._environ.get(STREAMS_URL_VARIABLE) or None}
        record = {**urls, "settings": recorded_settings(self._environ)}
        publish(self._options.data_dir, record, self._environ)


def workers_command(*arguments: str) -> list[str]:
    """Return the command for a process of the package `trainwire.workers`."""
    return python_command("trainwire.workers", *arguments)


def python_command(package: str, *arguments: str) -> list[str]:
    """Return the command that runs a package of trainwire.

    The option `-P` keeps the current folder out of `sys.path`, because the folder may contain the user's
    `redis.py`.
    """
    return [sys.executable, "-P", "-m", package, *arguments]
