"""Clients of system tests: each follows a job in a thread of its own, at any gateway that answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from urllib3.exceptions import HTTPError
from websockets.exceptions import WebSocketException

from tests.integration.gateway.feed_clients import EventSource, GatewayAddress, WebSocketClient

GONE = (OSError, WebSocketException, HTTPError, StopIteration)
"""The errors of a client whose gateway was killed or is not up yet."""
PATIENCE_S = 60
PAUSE_S = 0.1


class Follower:
    """Follows one job; after the loss of its gateway it reconnects to the next one, from its position."""

    def __init__(
        self, kind: type[WebSocketClient | EventSource], job_id: int, gateways: Sequence[GatewayAddress]
    ) -> None:
        path = f"/jobs/{job_id}/{'ws' if kind is WebSocketClient else 'events'}"
        self.moves = 0
        """How often it has reconnected to another gateway."""
        self.client = kind(gateways[0], path)
        self.client.take()
        self._job_id = job_id
        self._gateways = list(gateways)
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"follower of {job_id}", daemon=True)
        self._thread.start()

    def has(self, kind: str, rows: int) -> bool:
        """Return whether it has so many rows of a kind; raise the error that ended it, if any."""
        if self._error is not None:
            raise AssertionError(f"a client of job {self._job_id} saw what must not be") from self._error
        return self.client.have[kind] >= rows

    def has_seen_the_end(self) -> bool:
        """Return whether an event or the snapshot had the job's status `completed`."""
        states = [*self.client.states, self.client.first["job"]]
        return any(state["status"] == "completed" for state in states)

    def close(self) -> None:
        """Close the connection."""
        self._is_closed = True
        self.client.__exit__()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._take()
        except Exception as exc:  # noqa: BLE001 - raised again where the test looks
            self._error = exc

    def _take(self) -> None:
        try:
            self.client.take()
        except GONE:
            self._go_on()

    def _go_on(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_closed:
            self._gateways = [*self._gateways[1:], self._gateways[0]]
            try:
                self.client.connect_to(self._gateways[0])
            except GONE:
                assert time.monotonic() < deadline, "no gateway answers"
                time.sleep(PAUSE_S)
            else:
                self.moves += 1
                return
