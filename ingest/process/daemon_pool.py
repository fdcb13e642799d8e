"""Threads of trainwire's own: no interpreter waits for them, and no signal of the training reaches them."""

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
"""What others send, in contrast to the errors of a thread itself."""


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start threads in this block: they then take no signal that the training waits for with `sigwait`."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ASYNCHRONOUS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start_daemon(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread that prints no traceback: an error that ends it is one warning.

    Raises `RuntimeError` where the system refuses a thread.
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
    """Load the library by which glibc ends threads when the interpreter exits.

    Without a free file descriptor at the exit the load would fail, and glibc would abort the training
    ("libgcc_s.so.1 must be installed for pthread_exit to work").
    """
    with suppress(Exception):  # another system
        from _ctypes import dlopen  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - a millisecond

        dlopen("libgcc_s.so.1", 0)


def message_of(exc: BaseException) -> str:
    """Return an error as a warning shows it: without a traceback, and never empty."""
    return f"{type(exc).__name__}: {exc}".removesuffix(": ")


class DaemonPool(Generic[T]):
    """Runs what is submitted on `size` daemon threads, in order; `close` ends the ones that are idle."""

    def __init__(self, size: int, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self.size = size
        for number in range(size):
            start_daemon(self._run, f"{name}-{number}")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Return what will hold the result of `work`, or what it raised."""
        future: Future[T] = Future()
        self._work.put((future, work))
        return future

    def close(self) -> None:
        """Let each thread end after what it does now."""
        for _ in range(self.size):
            self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as exc:  # noqa: BLE001 - raised again where the result is asked for
                future.set_exception(exc)
            del item, future, work  # a part's bytes are not kept while the thread waits for the next
