"""Makes messages from buffered values, also while the sender's thread waits for the network."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import message_of
from trainwire.ingest.sending.outbox import Outbox

logger = logging.getLogger("trainwire.ingest")

LATE_S: Final = 0.1
"""Age in seconds at which a second thread spools buffered values: a killed trainer loses at most 200 ms."""
HUNG_DISK_S: Final = 10.0
DISK_POLL_S: Final = 0.05


class Cutter:
    """Makes the messages of an outbox, until `stopped` is set; its methods may be called from any thread."""

    def __init__(self, outbox: Outbox, stopped: threading.Event) -> None:
        self._outbox = outbox
        self._stopped = stopped
        self._cut_at = 0.0
        self._cuts = 0
        self._hung_at = -1
        """The number of cuts at which the disk was found to hang."""
        self._cut_now = threading.Event()
        self._has_cut = threading.Event()
        self._has_warned = False

    def cut(self) -> bool:
        """Make messages from buffered values, and return whether there may be more."""
        has_more = self._outbox.cut()
        self._note_cut()
        self._cut_at = monotonic_s()
        return has_more

    def try_to_cut(self) -> bool:
        """Make messages as `cut` does; after an error, which is logged and not raised, return False."""
        try:
            return self._outbox.cut()
        except Exception as exc:
            if not self._has_warned:
                self._has_warned = True
                logger.warning("messages cannot be cut now (%s): tried again", message_of(exc))
            logger.debug("unexpected while messages were cut", exc_info=True)
            return False
        finally:
            self._note_cut()

    def cut_when_late(self) -> None:
        """Until stopped, spool values while the sending thread waits for imports or for the server."""
        while not self._stopped.is_set():
            is_asked = self._cut_now.wait(LATE_S)
            self._cut_now.clear()
            if is_asked or monotonic_s() - self._cut_at >= LATE_S:
                while self.try_to_cut() and not self._stopped.is_set():
                    pass

    def wake(self) -> None:
        """Let `cut_when_late` go on without waiting."""
        self._cut_now.set()

    def relieve(self, is_enough: Callable[[], bool]) -> None:
        """Wait until `is_enough` returns True or the sender has stopped.

        If the disk writes nothing for `HUNG_DISK_S`, this and later calls return at once, until it writes
        again.
        """
        began, cuts = monotonic_s(), self._cuts
        while not is_enough() and self._hung_at != self._cuts and not self._stopped.is_set():
            self._cut_now.set()
            self._has_cut.wait(DISK_POLL_S)
            self._has_cut.clear()
            if self._cuts != cuts:
                began, cuts = monotonic_s(), self._cuts
            elif monotonic_s() - began >= HUNG_DISK_S:
                self._hung_at = cuts
                logger.warning(
                    "the disk has taken nothing for %.0f s: output is no longer held up for it", HUNG_DISK_S
                )

    def _note_cut(self) -> None:
        self._cuts += 1
        self._has_cut.set()
