"""The thread of a run that sends the spool of earlier processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from trainwire.ingest.outage import NoServer
from trainwire.ingest.process.daemon_pool import message_of, start_daemon
from trainwire.ingest.process.forks import importing

if TYPE_CHECKING:
    from pathlib import Path

    from trainwire.ingest.destinations import Destination
    from trainwire.ingest.settings.setting_groups import Timing

logger = logging.getLogger("trainwire.ingest")

RECOVERY_DELAY_S: Final = 5.0
RECOVERY_TIMEOUT_S: Final = 600.0
"""Time limit for sending the spool of one ended source; also the longest pause after an error."""


def start_recovery(
    folder: Path, destination: Destination, timing: Timing, *, stop: threading.Event, warn: Callable[[str], None]
) -> None:
    """Start the thread; it ends when everything in the spool `folder` is sent, or `stop` is set."""
    with suppress(RuntimeError):  # the system refuses a thread: the next run recovers the spool
        start_daemon(partial(_recover, folder, destination, timing, stop, warn), "trainwire-recovery")


def _recover(
    folder: Path, destination: Destination, timing: Timing, stop: threading.Event, warn: Callable[[str], None]
) -> None:
    """Send what earlier processes on this machine left in the spool for this server; retry after errors."""
    wait_s = RECOVERY_DELAY_S
    while not stop.wait(wait_s):
        try:
            with importing():
                from trainwire.ingest.sending.recovery import send_leftovers  # noqa: PLC0415
            recovered = send_leftovers(
                folder,
                destination.locate(),
                timing,
                RECOVERY_TIMEOUT_S,
                servers={destination.server},
                stop=stop,
                token=destination.token,
            )
            for found in recovered:
                logger.info("job %s: %s", found.about.job_id, found.receipt)
        except NoServer:
            return  # the `trainwire up` that is started later sends them
        except Exception as exc:
            warn(f"messages of earlier runs in {folder} cannot be sent now ({message_of(exc)}): tried again")
            logger.debug("messages of earlier runs stay in the spool", exc_info=True)
            wait_s = min(2 * wait_s, RECOVERY_TIMEOUT_S)
        else:
            return
