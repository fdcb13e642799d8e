"""Threads for requests that may hang: unlike those of concurrent.futures, no interpreter waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class DaemonPool(Generic[T]):
    """Runs what is submitted on `size` daemon threads, in order; `close` ends the ones that are idle."""

    def __init__(self, size: int, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self.size = size
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
