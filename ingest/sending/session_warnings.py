"""The warnings of a run: values left out, and messages that could not be sent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trainwire.ingest.servers.destinations import ANY_STACK, NamedServer, spool_variable_of
from trainwire.ingest.servers.server_names import shown_server

if TYPE_CHECKING:
    from trainwire.ingest.receipt import Receipt
    from trainwire.ingest.sending.buffer import Buffer
    from trainwire.ingest.servers.destinations import Destination
    from trainwire.ingest.settings.trainer_settings import TrainerSettings

logger = logging.getLogger("trainwire.ingest")


class SessionWarnings:
    """Logs the warnings of one session, with the number of its job."""

    def __init__(self, job_id: int, settings: TrainerSettings) -> None:
        self._job_id = job_id
        self._settings = settings
        self._warned_of: set[str] = set()

    def once(self, subject: str, text: object) -> None:
        """Log a warning, unless one about the same subject was logged before."""
        if subject not in self._warned_of:
            self._warned_of.add(subject)
            logger.warning("job %s: %s", self._job_id, text)

    def of_drop(self, buffer: Buffer) -> None:
        """Warn once that values are left out, because the run is finished or the buffer is full."""
        if self._settings.is_disabled:
            return
        if buffer.is_closed:
            self.once("finished", "the run is finished: later calls are left out")
        else:
            size_bytes = self._settings.buffer_bytes
            self.once("full", f"the buffer of {size_bytes} bytes is full: log lines are left out, and counted")

    def of_unsent(self, receipt: Receipt, destination: Destination, *, is_refused: bool) -> None:
        """Warn of messages that could not be sent, with their place and the remedy; do nothing if all were sent.

        `is_refused` is True if the server refused this trainer.
        """
        unsent, spooled = sum(receipt.unsent.values()), sum(receipt.spooled.values())
        if not unsent:
            return
        is_kept = spooled >= unsent
        if is_kept and is_refused and self._settings.launcher_logs_outages:
            return  # the launcher logs the same of its messages
        variable = spool_variable_of(self._settings.spool.folder)
        if isinstance(destination, NamedServer):
            host = shown_server(destination.locate())
            remedy = (
                f"the next run with this spool that reaches this server sends them; `{variable}trainwire spool "
                "send --any-server` sends them to a running `trainwire up`"
            )
        else:
            host, remedy = destination.server, f"`{variable}trainwire up` sends them, now or once it runs"
            if is_kept and host == ANY_STACK:
                return  # logged when the run began
        kept = f"they are kept in {self._settings.spool.folder}: {remedy}"
        logger.warning(
            "job %s: %s messages (each has a batch of log lines, or of points) could not be sent to %s; %s",
            *(self._job_id, unsent, host, kept if is_kept else "those that are not in a spool are lost"),
        )
