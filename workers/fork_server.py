"""Starts processes of the workers by forks of one process that has imported their modules (decision 36).

A new Python process spends about a second of CPU time on imports before it can execute an order; a fork has them
already. `trainwire.stack.fork_server` is the client.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Final

from trainwire.schemas.sinks import SINKS
from trainwire.workers.sinks.plugin import plugin

MAX_REQUEST_BYTES: Final = 65_536
_MODULES: Final = (
    *("trainwire.workers.tasks", "trainwire.workers.drain_tasks", "trainwire.workers.watchdog"),
    "trainwire.workers.beat",
    *("trainwire.workers.orders.broker_transport", "trainwire.workers.orders.broker_consumer"),
    *("celery.apps.worker", "celery.apps.beat", "celery.app.log", "celery.app.events", "celery.app.control"),
    *("celery.loaders.app", "celery.concurrency.prefork", "celery.worker.autoscale", "celery.worker.components"),
    *("celery.worker.consumer", "celery.worker.consumer.delayed_delivery", "celery.worker.pidbox"),
    *("celery.worker.strategy", "kombu.transport.redis", "billiard.popen_fork", "billiard.sharedctypes"),
    *("sqlalchemy.dialects.postgresql.psycopg", "psycopg.pq", "concurrent.futures.thread", "boto3"),
)
"""The modules that a worker or beat imports up to its first orders."""


def preload() -> None:
    """Import the modules of workers and beat, and exempt all objects so far from garbage collection."""
    for module in _MODULES:
        importlib.import_module(module)
    for sink in SINKS:
        plugin(sink)
    gc.collect()
    gc.freeze()


def serve(descriptor: int) -> list[str] | None:
    """Answer the requests of the client at this socket until it closes the socket.

    Returns the arguments of the process to run in each forked process, and None in the server at its end. The
    server must have no other threads: only the thread that forks exists in the new process.
    """
    signals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(fileno=descriptor) as client, signals, wakeup, DefaultSelector() as selector:
        client.setblocking(True)
        selector.register(client, EVENT_READ)
        selector.register(signals, EVENT_READ)
        client.sendall(json.dumps({"ready": True}).encode())
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if signals in ready:
                signals.recv(4096)
                _report_ended(client)
            if client not in ready:
                continue
            request, logs, _, _ = socket.recv_fds(client, MAX_REQUEST_BYTES, 1)
            if not request:
                return None
            go, report = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(report)
                _await_report(go)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                arguments = [str(argument) for argument in json.loads(request)]
                _become_leader(logs[0], arguments)
                return arguments
            os.close(logs[0])
            os.close(go)
            client.sendall(json.dumps({"pid": pid}).encode())
            with suppress(BrokenPipeError):  # it has been killed
                os.write(report, b"!")
            os.close(report)


def _await_report(go: int) -> None:
    """In a forked process, wait until the server has reported it, or end if the server has ended before.

    Otherwise a worker would run that `trainwire up` does not know, beside the one that is started instead.
    """
    if not os.read(go, 1):
        os._exit(1)
    os.close(go)


def _report_ended(client: socket.socket) -> None:
    """Send the process id and the exit code of each forked process that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        with suppress(OSError):  # the client has been killed
            client.sendall(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become_leader(log: int, arguments: list[str]) -> None:
    """Give this forked process a session, an output and a command line of its own."""
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    set_command_line([*sys.orig_argv[: sys.orig_argv.index("trainwire.workers") + 1], *arguments])


def set_command_line(arguments: list[str]) -> None:
    """Replace the command line that `ps` and /proc/PID/cmdline show for this process, truncated to its length.

    Linux stores it in the memory of the process, between two addresses in /proc/PID/stat (proc(5)).
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if 0 < start < end:
        shown = "\0".join(arguments).encode(errors="surrogateescape")[: end - start - 1]
        ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)
