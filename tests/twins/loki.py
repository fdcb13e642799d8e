"""A twin of Loki 3 for tests: `with LokiTwin() as twin: twin.url`, or `python -m tests.twins.loki --port 3100`."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from tests.twins.loki_core import NO_TENANT, Core
from tests.twins.loki_faults import FOREVER, Fault, Faults
from tests.twins.loki_http import Server
from tests.twins.loki_rules import Limits
from tests.twins.loki_store import Line, Store

__all__ = ["FOREVER", "Fault", "Faults", "Limits", "Line", "LokiTwin"]


class LokiTwin:
    """A small HTTP server that keeps Loki's rules; its lines and its port outlive `stop()`.

    Arguments: the `port` (0: a free one), the `limits`, a clock `now_ns`, and `auth`, a user and a password that
    every request must then bring.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        limits: Limits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        auth: tuple[str, str] | None = None,
    ) -> None:
        self._core = Core(Store(limits or Limits(), now_ns), auth)
        self._port = port
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address; stays the same over stops and starts."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def faults(self) -> Faults:
        """The queue of faults for the next requests."""
        return self._core.faults

    def start(self) -> None:
        """Listen; again on the same port after a stop."""
        if self._server is not None:
            return
        self._server = Server(self._port, self._core)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections and close the open ones; the lines are kept."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_connections()
        self._thread.join()
        self._server = self._thread = None

    def fail_with(self, status: int, times: int = 1, retry_after: str | int | None = None) -> None:
        """Answer the next pushes with this status and store nothing."""
        self.faults.append(Fault(status=status, times=times, retry_after=retry_after))

    def lines(self, job_id: int | str | None = None, tenant: str = NO_TENANT) -> list[Line]:
        """Return the stored lines of a job, or of all, by time; equal times in the order of arrival."""
        return self._core.lines(job_id, tenant)

    def stats(self) -> dict[str, Any]:
        """Return counts of connections, requests, pushes, queries, lines and statuses."""
        return self._core.stats()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="what every request must bring")
    arguments = parser.parse_args()
    user, _, password = (arguments.auth or "").partition(":")
    with LokiTwin(arguments.port, auth=(user, password) if user else None) as twin:
        print(twin.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
