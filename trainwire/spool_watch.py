"""While the stack runs, what trainers on this machine left behind is sent by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ingest.leftovers import send_leftovers
from ingest.settings import Timing

LOOK_EVERY_S: Final = 10.0
SOURCE_TIMEOUT_S: Final = 600.0


class SpoolWatch:
    """Looks into the spool every ten seconds, and says a line for each source that is sent."""

    def __init__(
        self, spool: Path, redis_url: str, say: Callable[[str], None], bells_url: str | None = None
    ) -> None:
        self._spool = spool
        self._redis_url = redis_url
        self._bells_url = bells_url
        self._say = say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-watch", daemon=True)

    def start(self) -> None:
        """Start to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to look; what is being sent goes on until the process ends."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            found = send_leftovers(
                self._spool,
                self._redis_url,
                Timing(),
                SOURCE_TIMEOUT_S,
                stop=self._stop,
                bells_url=self._bells_url,
            )
            for leftover in found:
                about = leftover.about
                if leftover.is_discarded:
                    self._say(
                        f"spool: job {about.job_id} was deleted: what source {about.source} had left is gone"
                    )
                elif leftover.is_done:
                    self._say(f"spool: sent what source {about.source} of job {about.job_id} had left")
            self._stop.wait(LOOK_EVERY_S)
