"""Faults that a twin applies to requests, in the order in which a test queued them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

FOREVER = -1
TEXTS = {
    260: "ingestion blocked for user 'fake' until '2099-01-01T00:00:00Z' with status code '260'",
    429: "Ingestion rate limit exceeded for user fake (limit: 4194304 bytes/sec) while attempting to ingest '1' "
    "lines totaling '1' bytes, reduce log volume or contact your Loki administrator to see if the limit can be "
    "increased",
}


@dataclass(frozen=True)
class Fault:
    """One way to fail, for a number of requests.

    `status`: answer this and store nothing. `slow`: wait, then answer well. `cut`: close the connection and store
    nothing. `lost_answer`: store, wait, then close the connection without an answer. `hang`: store nothing and do
    not answer until the twin stops, or for `delay_s` where it is given.
    """

    kind: Literal["status", "slow", "cut", "lost_answer", "hang"] = "status"
    status: int = 500
    times: int = 1
    retry_after: str | int | None = None
    delay_s: float = 0.0
    body: str | None = None
    on: Literal["push", "query", "any"] = "push"

    @property
    def text(self) -> str:
        """Return the body of the answer, with Loki's own text for the status if there is one."""
        return (
            self.body if self.body is not None else TEXTS.get(self.status, f"told to answer {self.status}") + "\n"
        )

    def concerns(self, operation: str) -> bool:
        """Return whether the fault is for this kind of request."""
        return self.on in {"any", operation}


class Faults:
    """A queue of faults; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, fault: Fault) -> None:
        """Queue one more."""
        self.extend([fault])

    def extend(self, faults: Iterable[Fault]) -> None:
        """Queue several more."""
        with self._lock:
            self._waiting.extend(fault for fault in faults if fault.times)

    def clear(self) -> None:
        """Remove all faults that have not been applied."""
        with self._lock:
            self._waiting.clear()

    def take(self, operation: str) -> Fault | None:
        """Return the fault for the next request of this kind, None if there is none."""
        with self._lock:
            for number, fault in enumerate(self._waiting):
                if fault.concerns(operation):
                    self._use(number, fault)
                    return fault
        return None

    def _use(self, number: int, fault: Fault) -> None:
        if fault.times == 1:
            del self._waiting[number]
        elif fault.times != FOREVER:
            self._waiting[number] = replace(fault, times=fault.times - 1)
