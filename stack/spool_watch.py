"""Sends the messages that trainers on this machine left in the spool when they ended, while the stack runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from trainwire.ingest.sending.recovery import Leftover, send_leftovers
from trainwire.ingest.settings.setting_groups import Timing

SEND_EVERY_S: Final = 10.0
SOURCE_TIMEOUT_S: Final = 600.0
LONGEST_PAUSE_S: Final = 600.0


class SpoolWatch:
    """Thread that sends the messages that ended trainers left in the spool, every ten seconds.

    It prints a line for each source. If messages of a source were sent but workers have not stored them, the
    interval until that source is sent again doubles, up to ten minutes.
    """

    def __init__(
        self,
        spool: Path,
        redis_url: str,
        say: Callable[[str], None],
        servers: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        """Create the thread, without starting it.

        Args:
            spool: path of the spool folder.
            redis_url: URL of the Redis to send to.
            say: called with each line of text for the terminal.
            servers: returns the names under which the spool stores messages for this Redis.
        """
        self._spool = spool
        self._servers = servers
        self._redis_url = redis_url
        self._say = say
        self._stop = threading.Event()
        self._waits: dict[Path, tuple[float, float]] = {}  # folder -> next time to send it, and the last pause
        self._thread = threading.Thread(target=self._run, name="spool-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; a transfer in progress continues until the process exits."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            found = send_leftovers(
                self._spool,
                self._redis_url,
                Timing(),
                SOURCE_TIMEOUT_S,
                servers=self._servers(),
                stop=self._stop,
                is_due=self._is_due,
            )
            for leftover in found:
                messages = f"messages of job {leftover.about.job_id}, source {leftover.about.source}"
                self._note(leftover)
                if leftover.is_discarded:
                    self._say(f"spool: discarded {messages}: the job was deleted")
                elif leftover.is_done:
                    self._say(f"spool: sent {messages}")
            self._stop.wait(SEND_EVERY_S)

    def _is_due(self, path: Path) -> bool:
        return time.monotonic() >= self._waits.get(path, (0.0, 0.0))[0]

    def _note(self, leftover: Leftover) -> None:
        """Double the time until a source is sent again if everything was sent but not all of it is stored.

        Otherwise reset it to ten seconds.
        """
        _, pause_s = self._waits.pop(leftover.path, (0.0, SEND_EVERY_S / 2))
        if not leftover.is_done and not any(leftover.receipt.unsent.values()):
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._waits[leftover.path] = (time.monotonic() + pause_s, pause_s)
