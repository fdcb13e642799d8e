"""The child processes of a run: trainer, worker without Celery's pool, recovery of a spool, gateway and client."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from argparse import Namespace
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis import RedisError
from websockets.exceptions import WebSocketException

from tests.certify.failpoints import Failpoints, Failure, install
from trainwire.ingest.sending.recovery import send_leftovers
from trainwire.ingest.settings.setting_groups import CheckpointSettings, SpoolSettings, Timing
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.schemas import keys
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.workers import drain_tasks
from trainwire.workers.__main__ import EXIT_NOT_READY, _beat, _check_schema, _publish_shards
from trainwire.workers.app import app
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.log_events import configure_logging
from trainwire.workers.operations import job_deletion
from trainwire.workers.orders.order_sender import order_anew
from trainwire.workers.resources import process_resources
from trainwire.workers.schedule import SCHEDULE

if TYPE_CHECKING:
    from tests.certify.stories.story import Command
    from tests.certify.world import World

TIMING: Final = Timing(
    flush_interval_s=0.01,
    ack_interval_s=0.03,
    resend_after_s=0.3,
    probe_after_s=0.6,
    settle_s=4.0,
    first_backoff_s=0.02,
    longest_backoff_s=0.2,
)
TICKS: Final[dict[str, float]] = {
    keys.SWEEP_TASK: 0.1,
    keys.DELIVER_TICK_TASK: 0.2,
    keys.LIVENESS_TASK: 0.5,
    keys.STRAYS_TASK: 1.0,
    keys.ROLLUP_TASK: 0.5,
    keys.VERIFY_TASK: 0.5,
    keys.DELETE_TASK: 0.3,
    keys.ALERT_TICK_TASK: 0.3,
    keys.ROW_RETENTION_TASK: 0.5,
    keys.RETENTION_TASK: 0.7,
    keys.LINK_TICK_TASK: 0.5,
}
"""The periodic tasks, and their interval in seconds."""

Run = Callable[[Failpoints], None]


class Child:
    """A forked child process that runs one function with failpoints, then exits; its output goes to a file."""

    def __init__(
        self, folder: Path, name: str, failure: Failure | None, run: Run, armed_by: Path | None = None
    ) -> None:
        self.name = name
        self._armed_by = armed_by
        self.record = folder / "calls.tsv"
        self._log = folder / f"{name}.log"
        self._run = run
        self.code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            self._become(failure)

    def _become(self, failure: Failure | None) -> None:
        code = 70
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            logging.basicConfig(stream=sys.stderr, force=True)
            points = Failpoints(self.record, failure, self._armed_by)
            given = astuple(failure) if failure else None
            os.environ |= {"CERTIFY_RECORD": str(self.record), "CERTIFY_FAILURE": json.dumps(given)}
            install(points)
            self._run(points)
            code = 0
        except SystemExit as exc:  # of a command
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except BaseException:  # noqa: BLE001 - the audit reads its exit code and its output
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    @property
    def output(self) -> str:
        """The output of the child so far, on stdout and stderr."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def poll(self) -> bool:
        """Return whether the child has ended; `code` is then its exit code, or -n for signal n."""
        if self.code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def kill(self) -> None:
        """Kill the child if it still runs."""
        if not self.poll():
            os.kill(self._pid, 9)
            _, status = os.waitpid(self._pid, 0)
            self.code = os.waitstatus_to_exitcode(status)


def trainer(
    folder: Path,
    rank: int,
    settings: TrainerSettings,
    train: Callable[[TrainerSettings], Any],
    *,
    is_launcher: bool = False,
) -> Run:
    """Return the function of a trainer, which calls `train` and writes its receipt to `receipt{rank}.json`.

    If `is_launcher`, the failpoints are in the processes that `train` starts, and not in this one. Only rank 0 has
    failpoints.
    """

    def run(points: Failpoints) -> None:
        points.role = "" if is_launcher or rank else "trainer"
        receipt = train(settings)
        points.role = ""
        (folder / f"receipt{rank}.json").write_text(json.dumps(vars(receipt)))

    return run


def recovery(settings: TrainerSettings) -> Run:
    """Return the function that sends the messages that a trainer left in its spool, as the next run does."""

    def run(points: Failpoints) -> None:
        points.role = "recovery"
        assert settings.spool.folder is not None
        assert settings.redis_url is not None
        for _ in send_leftovers(settings.spool.folder, settings.redis_url, settings.timing, 6.0, any_server=True):
            pass

    return run


def command(wanted: Command, environment: Mapping[str, str]) -> Run:
    """Return the function of an operator's command, which has the settings of the worker."""

    def run(points: Failpoints) -> None:
        os.environ |= environment
        points.role = wanted.role
        wanted.run()

    return run


def worker(folder: Path, environment: Mapping[str, str], ticks: Mapping[str, float]) -> Run:
    """Return the function of a worker that executes orders one by one, and the periodic tasks `ticks` itself.

    The worker ends once the file `stop` exists in `folder`.
    """

    def run(points: Failpoints) -> None:
        os.environ |= environment
        configure_logging()
        _shorten_waits()
        _start(points)
        broker = process_resources().redis
        due = dict.fromkeys(ticks, 0.0)
        stop = folder / "stop"
        while not stop.exists():
            for task, at in due.items():
                if time.monotonic() >= at:
                    _execute(points, folder, task, [])
                    due[task] = time.monotonic() + ticks[task]
            while (order := _next_order(broker)) is not None:
                _execute(points, folder, *order)
            time.sleep(0.03)

    return run


def beat(folder: Path) -> Run:
    """Return the function of Celery's beat, which sends the orders of all periodic tasks at short intervals."""

    def run(points: Failpoints) -> None:
        os.environ["ALIVE_FILE"] = str(folder / "alive")
        app.conf.beat_schedule = {
            name: entry | {"schedule": TICKS[entry["task"]]} for name, entry in SCHEDULE.items()
        }
        points.role = "beat"
        _beat(process_resources(), Namespace())

    return run


def gateway(port: int) -> Run:
    """Return the function of a gateway."""

    def run(points: Failpoints) -> None:
        from trainwire.gateway import __main__ as main  # noqa: PLC0415 - few scenarios have one

        os.environ["GATEWAY_PORT"] = str(port)
        points.role = "gateway"
        main.main()

    return run


def watcher(world: World) -> Run:
    """Return the function of a client that follows the job on a WebSocket, and reconnects.

    It writes the received lines and the last status to `watched.json`.
    """

    def run(_points: Failpoints) -> None:
        from tests.integration.gateway.feed_clients import GatewayAddress, WebSocketClient  # noqa: PLC0415

        texts: list[str] = []
        position = status = None
        while True:
            with suppress(OSError, WebSocketException):
                client = WebSocketClient(GatewayAddress(world.gateway_port), f"/jobs/{world.job}/ws", position)
                with client:
                    while True:
                        event = client.take()
                        texts += client.texts
                        client.texts.clear()
                        position = client.position
                        status = event.get("job", event).get("status", status)
                        write_whole(world.folder / "watched.json", json.dumps([texts, status]))
            time.sleep(0.1)

    return run


def write_whole(path: Path, text: str) -> None:
    """Write a file so that no reader finds a part of it."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def _start(points: Failpoints) -> None:
    """Do what a worker does first; exit as it does if a store does not answer."""
    points.role = "start"
    resources = process_resources()
    try:
        _check_schema(resources)
        with redis_errors():
            _publish_shards(resources)
    except Unavailable:
        raise SystemExit(EXIT_NOT_READY) from None
    with suppress(Unavailable, *STREAM_ERRORS):
        order_anew(resources, keys.QUEUES)
    points.role = ""


def _shorten_waits() -> None:
    """Let the worker retry sooner, so that a run is idle for less time."""
    drain_tasks.REST_UNAVAILABLE_S = 1
    keys.ORDERED_TTL_S = 1  # type: ignore[misc]
    deletions: Any = job_deletion
    deletions.Backoff = lambda **_: Backoff(0.1, 0.5)


def _next_order(broker: Any) -> tuple[str, list[Any]] | None:
    with suppress(RedisError):  # as Celery, the worker outlives an outage
        for queue in keys.QUEUES:
            if (raw := broker.rpop(queue)) is not None:
                order = json.loads(raw)
                return order["headers"]["task"], json.loads(b64decode(order["body"]))[0]
    return None


def _execute(points: Failpoints, folder: Path, task: str, arguments: list[Any]) -> None:
    points.role = role_of(task, arguments)
    try:
        app.tasks[task].run(*arguments)
    except Exception:  # noqa: BLE001 - the audit reads it
        with (folder / "crashes").open("a") as crashes:
            traceback.print_exc(file=crashes)
    finally:
        points.role = ""


def role_of(task: str, arguments: list[Any]) -> str:
    """Return the role of a task: its name, with the kind of a drain or the sink of a delivery."""
    first = f"-{arguments[0]}" if task in (keys.DRAIN_TASK, keys.DELIVER_TASK) else ""
    return task.removeprefix("trainwire.") + first


def trainer_settings(redis_url: str, folder: Path, bucket: str | None, **options: Any) -> TrainerSettings:
    """Return settings of a trainer with short intervals and its own spool."""
    spool = SpoolSettings(folder=folder / "spool")
    checkpoints = CheckpointSettings(bucket=bucket, retry_s=20, finish_s=20)
    return replace(
        TrainerSettings(redis_url=redis_url, timing=TIMING, spool=spool, checkpoints=checkpoints, quiet=True),
        **options,
    )
