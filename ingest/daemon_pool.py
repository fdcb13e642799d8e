"""Threads of trainwire's own: no interpreter waits for them, and no signal of the training reaches them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

T = TypeVar("T")

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


class DaemonPool(Generic[T]):
    """Runs what is submitted on `size` daemon threads, in order; `close` ends the ones that are idle."""

    def __init__(self, size: int, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self.size = size
        with signals_blocked():
            for number in range(size):
                threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True).start()

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
