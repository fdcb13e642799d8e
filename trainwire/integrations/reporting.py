"""Shared by the integrations: a decorator that suppresses errors, and reports that `Run` has no methods for."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from trainwire.ingest.run import Run
from trainwire.ingest.sanitize import plain_mapping
from trainwire.schemas.wire.messages import Metrics, Point

P = ParamSpec("P")

logger = logging.getLogger("trainwire.integrations")


def harmless(report: Callable[P, None]) -> Callable[P, None]:
    """Decorate `report` so that it never raises an error.

    The first error is logged as a warning with its traceback; further ones are ignored.
    """
    has_warned = False

    @functools.wraps(report)
    def reported(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal has_warned
        try:
            report(*args, **kwargs)
        except Exception:
            if not has_warned:
                has_warned = True
                logger.warning("%s failed: training goes on without it", report.__qualname__, exc_info=True)

    return reported


def report_aside(run: Run, values: dict[str, float]) -> None:
    """Report metrics of the machine. Unlike those of `Run.metric`, they do not become final metrics of the job."""
    run._session.take_metric(Point(ts=time.time_ns(), values=values))  # noqa: SLF001


def report_params(run: Run, params: Mapping[str, Any]) -> None:
    """Report params that become known after the run was created; they replace earlier params.

    Raises `ValueError` if `params` is not a mapping.
    """
    header = Metrics(ts=time.time_ns(), params=plain_mapping("params", params))
    run._session.take_metric(header)  # noqa: SLF001


def on_stop(run: Run, stop: Callable[[], None]) -> None:
    """Call `stop` when a user asks the run to stop, or immediately if a user already has.

    `stop` may be called in the thread that sends messages. After a fork, the child does not call it.
    """
    if run.should_stop:
        stop()
    else:
        run._session.stop.listen(stop)  # noqa: SLF001


def finish_event(run: Run) -> threading.Event:
    """Return an event that is set when the run begins to finish. A forked child has its own event."""
    return run._session.finished  # noqa: SLF001
