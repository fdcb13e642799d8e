"""Daemon threads: the interpreter does not wait for them at its exit, and they do not receive signals."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger("trainwire.ingest")

_ASYNCHRONOUS: Final = signal.valid_signals() - {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
}
"""The signals that other processes send, without those that an error of the thread itself causes."""


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals in the threads that are started in this `with` block.

    The training may wait for signals with `sigwait`; such a thread would receive them in its place.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ASYNCHRONOUS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start_daemon(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread. If an exception ends it, log a warning without a traceback.

    Raises `RuntimeError` if the system refuses a thread.
    """

    def run() -> None:
        try:
            work()
        except Exception as exc:
            logger.warning("%s has ended: %s; training goes on", name, message_of(exc))
            logger.debug("%s", name, exc_info=True)

    _prepare_thread_ends()
    thread = threading.Thread(target=run, name=name, daemon=True)
    with signals_blocked():
        thread.start()
    return thread


@cache
def _prepare_thread_ends() -> None:
    """Load libgcc, which glibc needs to end threads when the interpreter exits.

    If no file descriptor is free at the exit, glibc cannot load it, and would abort the training
    ("libgcc_s.so.1 must be installed for pthread_exit to work").
    """
    with suppress(Exception):  # another system
        from _ctypes import dlopen  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - a millisecond

        dlopen("libgcc_s.so.1", 0)


def message_of(exc: BaseException) -> str:
    """Return the type and the message of an error, for a warning."""
    return f"{type(exc).__name__}: {exc}".removesuffix(": ")


class DaemonPool(Generic[T]):
    """Runs functions on `size` daemon threads, in the order of `submit`, until `close`.

    The constructor raises `RuntimeError` if the system refuses a thread.
    """

    def __init__(self, size: int, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self.size = size
        for number in range(size):
            start_daemon(self._run, f"{name}-{number}")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue `work`; return the future of its result or exception."""
        future: Future[T] = Future()
        self._work.put((future, work))
        return future

    def close(self) -> None:
        """Make each thread end when all queued functions have run; do not wait for this."""
        for _ in range(self.size):
            self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as exc:  # noqa: BLE001 - the future raises it again
                future.set_exception(exc)
            del item, future, work  # a part's bytes are not kept while the thread waits for the next
