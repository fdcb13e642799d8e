"""The processes of the workers: `python -m trainwire.workers worker|beat|flower|metrics|sweep|fork-server`."""

from __future__ import annotations

import argparse
import atexit
import ctypes
import gc
import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
from redis.exceptions import OutOfMemoryError

from trainwire.schemas.keys import ALERT_QUEUE, QUEUES, SHARDS_KEY, echo_queue
from trainwire.schemas.migrations import WrongSchemaRevision, check_revision
from trainwire.stores.sentry import report_errors
from trainwire.stores.settings import WrongSettings
from trainwire.stores.tracing import flush, trace_process
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.log_events import configure_logging
from trainwire.workers.resources import Resources, process_resources
from trainwire.workers.sinks.plugin import sinks_on
from trainwire.workers.streams.sweep import drain_everything

if TYPE_CHECKING:
    from celery import Celery

log = structlog.get_logger("trainwire.workers")

ALL_QUEUES = ",".join(QUEUES)
EXIT_NOT_READY = 78
EXIT_FAULT = 1
CONFIRMATION_TENTHS_S = 20
_PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> int:
    """Run one process, chosen by the first argument; return its exit code.

    If the settings or the schema are wrong, or a store does not answer at the start, prints the reason to stderr
    and returns `EXIT_NOT_READY`.
    """
    atexit.register(gc.freeze)  # as in trainwire.__main__: its exit takes a third of a second less CPU time
    options = parser().parse_args(argv)
    configure_logging()
    try:
        resources = process_resources()
        report_errors(resources.settings, options.process)
        if options.process != "fork-server":  # each of its forks calls this function
            trace_process(resources.settings, options.process)
            atexit.register(flush)
        log.info("process.starting", process=options.process, settings=resources.settings.model_dump(mode="json"))
        if options.process in {"worker", "metrics", "sweep"}:
            _check_schema(resources)
            sinks_on(resources.settings)  # reads the settings of each sink
        return PROCESSES[options.process](resources, options)
    except (WrongSettings, WrongSchemaRevision, Unavailable) as exc:
        print(f"trainwire {options.process}: {exc}", file=sys.stderr)  # noqa: T201 - for the operator
        return EXIT_NOT_READY


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `python -m trainwire.workers`."""
    arguments = argparse.ArgumentParser(prog="python -m trainwire.workers", description=__doc__)
    processes = arguments.add_subparsers(dest="process", required=True)
    worker = processes.add_parser("worker", help="execute work orders")
    worker.add_argument("--concurrency", type=int, default=2, help="pool processes (default 2)")
    worker.add_argument("--queues", default=ALL_QUEUES, help=f"queues of work orders (default {ALL_QUEUES})")
    worker.add_argument("--name", default="worker", help="unique among the workers of this host")
    processes.add_parser("beat", help="send the periodic work orders; of several, one is active")
    flower = processes.add_parser("flower", help="show the workers in a browser")
    flower.add_argument("--port", type=int, default=5555)
    flower.add_argument("--address", default="127.0.0.1")
    metrics = processes.add_parser("metrics", help="serve metrics for Prometheus")
    metrics.add_argument("--port", type=int, default=9464)
    metrics.add_argument("--address", default="127.0.0.1")
    processes.add_parser("sweep", help="drain all streams once, without orders")
    forks = processes.add_parser("fork-server", help="start worker and beat by forks, for `trainwire up`")
    forks.add_argument("title", help="shown by ps")
    forks.add_argument("descriptor", type=int, help="number of the open socket of the client")
    return arguments


def _check_schema(resources: Resources) -> None:
    with postgres_errors(), resources.engine.connect() as connection:
        check_revision(connection)


def _publish_shards(resources: Resources) -> None:
    try:
        resources.streams.set(SHARDS_KEY, resources.settings.ingest_shards)
    except OutOfMemoryError:
        # A full Redis also refuses the queue declarations of Celery: make room first.
        drain_everything(resources)
        resources.streams.set(SHARDS_KEY, resources.settings.ingest_shards)


def _worker(resources: Resources, options: argparse.Namespace) -> int:
    from billiard import pool  # noqa: PLC0415 - the checks above need no Celery
    from celery import signals  # noqa: PLC0415 - as above

    from trainwire.workers.app import app, own_queue  # noqa: PLC0415 - reads the settings, so only after they were checked
    from trainwire.workers.watchdog import WatchdogStep  # noqa: PLC0415

    queues = options.queues.split(",")
    if ALERT_QUEUE in queues and resources.settings.alert_rules is not None:
        from trainwire.workers.alerts.rules_file import load_rules  # noqa: PLC0415 - not needed without rules

        load_rules(resources.settings.alert_rules)
    name = f"{options.name}@{socket.gethostname()}"
    with redis_errors(resources.settings.streams_address):
        _publish_shards(resources)
    with redis_errors(resources.settings.redis_url.get_secret_value()):
        resources.redis.delete(echo_queue(name))
    resources.engine.dispose()  # the pool's children make their own connections
    WatchdogStep.worker, WatchdogStep.settings, WatchdogStep.queues = name, resources.settings, queues
    app.steps["worker"].add(WatchdogStep)
    app.conf.broker_transport = "trainwire.workers.orders.broker_transport:Transport"
    app.conf.worker_consumer = "trainwire.workers.orders.broker_consumer:PromptConsumer"
    app.conf.task_queues = [*app.conf.task_queues, own_queue(echo_queue(name))]
    signals.worker_process_init.connect(_die_with_parent, weak=False)
    signals.worker_process_init.connect(_collect_less, weak=False)
    signals.worker_process_shutdown.connect(_flush_spans, weak=False)
    # By default a pool process waits half a minute for the worker to confirm its last order, which a worker that
    # is ending may never do. Executing an order twice is harmless.
    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = CONFIRMATION_TENTHS_S
    # Not by Celery's command line, whose imports take a third of the time of a start.
    worker = app.Worker(
        hostname=name,
        concurrency=options.concurrency,
        queues=[*queues, echo_queue(name)],
        without_gossip=True,
        without_mingle=True,
        loglevel="INFO",
    )
    worker.start()
    # None is the exit code of a worker that was terminated.
    return EXIT_FAULT if worker.exitcode is None else int(worker.exitcode)


def _beat(resources: Resources, _: argparse.Namespace) -> int:
    from trainwire.workers.beat import BeatLease, LeasedScheduler  # noqa: PLC0415 - the checks above need no Celery

    resources.engine.dispose()  # beat needs Redis alone
    LeasedScheduler.lease, LeasedScheduler.alive_file = BeatLease(resources.redis), resources.settings.alive_file
    _app().Beat(scheduler="trainwire.workers.beat:LeasedScheduler", loglevel="WARNING").run()
    return 0


def _flower(_: Resources, options: argparse.Namespace) -> NoReturn:
    from trainwire.workers.operations import flower  # noqa: PLC0415 - only this process needs it

    flower.prepare(options.address, os.environ)
    address = [f"--address={options.address}", f"--port={options.port}"]
    app = _app()
    app.conf.broker_pool_limit = 0  # Flower takes two connections in each of ten threads: a pool of four deadlocks
    app.start(["flower", *address, f"--tasks_columns={flower.COLUMNS}"])


def _sweep(resources: Resources, _: argparse.Namespace) -> int:
    from trainwire.workers.orders.order_sender import order_notify  # noqa: PLC0415 - the checks above need no Celery

    drain_everything(resources, partial(order_notify, resources))
    return 0


def _metrics(resources: Resources, options: argparse.Namespace) -> int:
    from trainwire.workers.operations.exporter import serve  # noqa: PLC0415 - only this process needs an HTTP server

    try:
        serving = serve(resources, options.address, options.port)
    except OSError as exc:
        raise WrongSettings(f"--address {options.address} --port {options.port}: {exc.strerror}") from exc
    log.info("metrics.serving", address=options.address, port=options.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serving.join()
    return 0


def _fork_server(_: Resources, options: argparse.Namespace) -> int:
    from trainwire.workers import fork_server  # noqa: PLC0415 - imports Celery

    fork_server.preload()
    arguments = fork_server.serve(options.descriptor)
    return 0 if arguments is None else main(arguments)


def _app() -> Celery:
    from trainwire.workers.app import app  # noqa: PLC0415 - reads the settings, so only after they were checked

    return app


def _die_with_parent(**_: object) -> None:
    """Let the kernel kill this pool process when its worker is killed: otherwise it keeps its connections.

    Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(0)


def _collect_less(**_: object) -> None:
    """Let the garbage collector skip imported objects, and run less often: drains make few reference cycles."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def _flush_spans(**_: object) -> None:
    """Export the spans of this pool process, which ends without functions of `atexit`."""
    flush()


PROCESSES: Final = {
    "worker": _worker,
    "beat": _beat,
    "flower": _flower,
    "metrics": _metrics,
    "sweep": _sweep,
    "fork-server": _fork_server,
}


if __name__ == "__main__":
    sys.exit(main())
