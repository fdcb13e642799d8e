"""The whole stack of one data folder: the servers, then the schema, then the processes that use them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.routes import BEAT_QUEUE, CHECKPOINT_QUEUE, DELIVER_QUEUE, INGEST_QUEUE, MLFLOW_QUEUE, NOTIFY_QUEUE
from trainwire.child import Child, stop_leftover
from trainwire.database import migrate
from trainwire.errors import PartFailed
from trainwire.folders import publish, withdraw
from trainwire.locate import Address
from trainwire.postgres import EmbeddedPostgres
from trainwire.remembered import usable_port
from trainwire.supervisor import CommandPart, Say, Supervisor
from trainwire.valkey import EmbeddedValkey

WORKER_STOP_TIMEOUT_S: Final = 10.0
WEB_READY_TIMEOUT_S: Final = 30.0
WEB_STOP_TIMEOUT_S: Final = 2.0
"""They only show what others hold: killing them loses nothing."""
GATEWAY_PORT: Final = 8800
METRICS_PORT: Final = 9464
EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - what may be asked for, not what is listened on
LEFTOVER_TIMEOUT_S: Final = 15.0
STOP_ORDER: Final = (
    *("metrics", "gateway", "flower", "beat", "mlflow", "checkpoints", "notifier", "deliverer", "worker"),
    *("valkey", "postgres"),
)
STORE_QUEUES: Final = f"{INGEST_QUEUE},{BEAT_QUEUE}"


@dataclass(frozen=True)
class StackOptions:
    """What a person chooses at `trainwire up`."""

    data_dir: Path
    concurrency: int | None = None
    with_flower: bool = True
    with_gateway: bool = True
    with_metrics: bool = True


class WebPart:
    """A server with a port of its own, by default on 127.0.0.1; ready when it listens there."""

    is_store: Final = False

    def __init__(
        self,
        name: str,
        data_dir: Path,
        *,
        port: int,
        command: list[str],
        env: Mapping[str, str],
        host: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.child = Child(name, data_dir, stop_timeout_s=WEB_STOP_TIMEOUT_S)
        self.port = port
        self.host = "127.0.0.1" if host in EVERY_ADDRESS else host
        self._command = command
        self._env = env

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self.child.start(self._command, self._env)
        self.child.wait_ready(lambda: self.child.listens_on(self.port), WEB_READY_TIMEOUT_S)


class Stack:
    """Everything that `trainwire up` runs; the caller holds the folder's lock."""

    def __init__(self, options: StackOptions, environ: Mapping[str, str], say: Say) -> None:
        self._options = options
        self._environ = environ
        self._say = say
        self._supervisor = Supervisor(say)
        self.address = Address(data_dir=options.data_dir)

    def start(self) -> None:
        """Start all parts and publish their addresses; raise `Problem` when one does not come up."""
        self._stop_leftovers()
        database_url, redis_url = self._start_postgres(), self._start_valkey()
        self.address = Address(database_url, redis_url, data_dir=self._options.data_dir)
        if self._supervisor.stop_requested:
            return
        migrate(self.address)
        self._say("postgres: tables are at the newest schema revision")
        env = dict(self._environ) | {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        self._start_workers(env)
        urls = self._start_webs(env)
        self.address = Address(database_url, redis_url, data_dir=self._options.data_dir, **urls)
        self._publish()

    def watch(self) -> None:
        """Keep the parts alive until a stop is requested."""
        self._supervisor.watch()

    def request_stop(self) -> None:
        """Make `start` and `watch` return soon; safe in a signal handler."""
        self._supervisor.request_stop()

    @property
    def stop_requested(self) -> bool:
        """Tell whether somebody asked for the end."""
        return self._supervisor.stop_requested

    def stop(self) -> None:
        """Stop all parts in reverse order, each within its own time."""
        withdraw(self._options.data_dir, self._environ)
        self._supervisor.stop()

    def kill(self) -> None:
        """SIGKILL all parts."""
        self._supervisor.kill()

    def _start_postgres(self) -> str:
        if url := self._environ.get("DATABASE_URL"):
            self._say("postgres: using the server that DATABASE_URL names")
            return url
        server = EmbeddedPostgres(self._options.data_dir)
        self._supervisor.start(server)
        return server.url

    def _start_valkey(self) -> str:
        if url := self._environ.get("REDIS_URL"):
            self._say("valkey: using the server that REDIS_URL names")
            return url
        server = EmbeddedValkey(self._options.data_dir)
        self._supervisor.start(server)
        return server.url

    def _start_workers(self, env: Mapping[str, str]) -> None:
        chosen = self._options.concurrency
        concurrency = [] if chosen is None else ["--concurrency", str(chosen)]
        ingest = ["--queues", STORE_QUEUES, *concurrency]
        self._start_command("worker", workers_command("worker", *ingest), env)
        # A slow Loki, MLflow or S3 must never hold up the store, nor a long drain the announcements:
        # each has a worker.
        alone_on = {"deliverer": DELIVER_QUEUE, "notifier": NOTIFY_QUEUE, "checkpoints": CHECKPOINT_QUEUE}
        if env.get("MLFLOW_TRACKING_URI"):
            alone_on["mlflow"] = MLFLOW_QUEUE
        for name, queue in alone_on.items():
            alone = ["--name", name, "--queues", queue, "--concurrency", "1"]
            self._start_command(name, workers_command("worker", *alone), env)
        self._start_command("beat", workers_command("beat"), env)

    def _start_command(self, name: str, command: list[str], env: Mapping[str, str]) -> None:
        part = CommandPart(name, command, self._options.data_dir, env=env, stop_timeout_s=WORKER_STOP_TIMEOUT_S)
        self._supervisor.start(part)

    def _start_webs(self, env: Mapping[str, str]) -> dict[str, str]:
        """Start what shows things side by side, for all take their time to import; return where they are."""
        options, parts = self._options, {}
        if options.with_flower:
            parts["flower_url"] = self._flower(env)
            env = {"GATEWAY_FLOWER_URL": parts["flower_url"].url, **env}
        if options.with_gateway:
            parts["gateway_url"] = self._gateway(env)
        if options.with_metrics:
            parts["metrics_url"] = self._metrics(env)
        with ThreadPoolExecutor(len(parts) or 1) as pool:
            list(pool.map(self._start_web, parts.values()))
        urls = {name: part.url for name, part in parts.items()}
        return urls | ({"metrics_url": f"{urls['metrics_url']}/metrics"} if options.with_metrics else {})

    def _flower(self, env: Mapping[str, str]) -> WebPart:
        data_dir = self._options.data_dir
        port = usable_port(data_dir, "flower")
        command = workers_command("flower", "--port", str(port))
        return WebPart("flower", data_dir, port=port, command=command, env=env)

    def _metrics(self, env: Mapping[str, str]) -> WebPart:
        data_dir = self._options.data_dir
        port = usable_port(data_dir, "metrics", METRICS_PORT)
        command = workers_command("metrics", "--port", str(port))
        return WebPart("metrics", data_dir, port=port, command=command, env=env)

    def _gateway(self, env: Mapping[str, str]) -> WebPart:
        data_dir, chosen = self._options.data_dir, env.get("GATEWAY_PORT") or ""
        port = int(chosen) if chosen.isdecimal() else usable_port(data_dir, "gateway", GATEWAY_PORT)
        # What is no number is refused by the gateway itself, by its name.
        said = {**env, "GATEWAY_PORT": chosen or str(port)}
        host = env.get("GATEWAY_HOST") or "127.0.0.1"
        return WebPart("gateway", data_dir, port=port, command=python_command("gateway"), env=said, host=host)

    def _start_web(self, part: WebPart) -> None:
        try:
            self._supervisor.start(part)
        except PartFailed as exc:
            # It only shows; the pipeline runs without it, and the supervisor tries again.
            self._say(f"{part.name}: {exc}")

    def _stop_leftovers(self) -> None:
        for name in STOP_ORDER:
            how = signal.SIGINT if name == "postgres" else signal.SIGTERM
            if stop_leftover(self._options.data_dir / "run" / f"{name}.json", how, LEFTOVER_TIMEOUT_S):
                self._say(f"{name}: stopped one that a killed `trainwire up` had left")

    def _publish(self) -> None:
        address = self.address
        urls = {
            "database_url": address.database_url,
            "redis_url": address.redis_url,
            "flower_url": address.flower_url,
            "gateway_url": address.gateway_url,
            "metrics_url": address.metrics_url,
        }
        publish(self._options.data_dir, urls | {"pid": os.getpid()}, self._environ)


def workers_command(*arguments: str) -> list[str]:
    """Return the command of a process of the workers."""
    return python_command("workers", *arguments)


def python_command(package: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our packages.

    `-P`: the current folder may hold a trainer's own package named `workers` or `schemas`.
    """
    return [sys.executable, "-P", "-m", package, *arguments]
