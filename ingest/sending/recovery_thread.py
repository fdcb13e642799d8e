"""The thread of a run that sends the spool of earlier processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from trainwire.ingest.process.daemon_pool import message_of, start_daemon
from trainwire.ingest.process.forks import importing
from trainwire.ingest.servers.outage import NoServer

if TYPE_CHECKING:
    from pathlib import Path

    from trainwire.ingest.identity.origin import Origin
    from trainwire.ingest.servers.destinations import Destination
    from trainwire.ingest.settings.setting_groups import Timing

logger = logging.getLogger("trainwire.ingest")

RECOVERY_DELAY_S: Final = 5.0
RECOVERY_TIMEOUT_S: Final = 600.0
"""Time limit for sending the spool of one ended source; also the longest pause after an error."""


def start_recovery(
    folder: Path, destination: Destination, timing: Timing, *, stop: threading.Event, warn: Callable[[str], None]
) -> None:
    """Start the thread; its first pass over the spool `folder` begins after `RECOVERY_DELAY_S` seconds.

    The thread ends after a pass without an error, if no server is configured or running, or when `stop` is set.
    `warn` is called with a warning after an error.
    """
    with suppress(RuntimeError):  # the system refuses a thread: the next run recovers the spool
        start_daemon(partial(_recover, folder, destination, timing, stop, warn), "trainwire-recovery")


def _recover(
    folder: Path, destination: Destination, timing: Timing, stop: threading.Event, warn: Callable[[str], None]
) -> None:
    """Send the messages that earlier processes on this machine left in the spool for this server.

    Retries after errors, with pauses that double up to `RECOVERY_TIMEOUT_S`.
    """
    wait_s = RECOVERY_DELAY_S
    while not stop.wait(wait_s):
        try:
            _send(folder, destination, timing, RECOVERY_TIMEOUT_S, stop=stop)
        except NoServer:
            return  # the `trainwire up` that is started later sends them
        except Exception as exc:
            warn(f"messages of earlier runs in {folder} cannot be sent now ({message_of(exc)}): tried again")
            logger.debug("messages of earlier runs stay in the spool", exc_info=True)
            wait_s = min(2 * wait_s, RECOVERY_TIMEOUT_S)
        else:
            return


def send_for_children(
    folder: Path, origin: Origin, destination: Destination, timing: Timing, timeout_s: float
) -> None:
    """Send what ended processes of the run of `origin` left in the spool `folder`, within `timeout_s` seconds.

    Errors are not raised: the next run with this spool sends the messages.
    """

    def send() -> None:
        with importing():
            from trainwire.ingest.sending.recovery import is_of_run  # noqa: PLC0415
        _send(
            folder,
            destination,
            timing,
            timeout_s,
            is_due=lambda path: path in others and is_of_run(path, origin),
        )

    with suppress(OSError, RuntimeError):  # no threads at the end of the interpreter
        others = {path for path in folder.glob(f"{origin.job_id}-*") if not path.name.endswith(origin.source)}
        if others:
            start_daemon(send, "trainwire-children").join(timeout_s)


def _send(
    folder: Path,
    destination: Destination,
    timing: Timing,
    timeout_s: float,
    *,
    stop: threading.Event | None = None,
    is_due: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Send the ended processes' source folders for this server whose `is_due` is True, until `stop` is set."""
    with importing():
        from trainwire.ingest.sending.recovery import send_leftovers  # noqa: PLC0415
    recovered = send_leftovers(
        folder,
        destination.locate(),
        timing,
        timeout_s,
        servers={destination.server},
        stop=stop,
        is_due=is_due,
        token=destination.token,
    )
    for found in recovered:
        logger.info("job %s: %s", found.about.job_id, found.receipt)
