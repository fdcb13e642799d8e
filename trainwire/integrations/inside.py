"""What integrations need of a run beyond its public face: said here, and nowhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from trainwire.ingest.run import Run
from trainwire.ingest.sanitize import plain_mapping
from trainwire.schemas.messages import Metrics, Point


def say_beside(run: Run, values: dict[str, float]) -> None:
    """Report values that say nothing of the model: unlike `Run.metric`, the completion does not repeat them."""
    run._session.take_metric(Point(ts=time.time_ns(), values=values))  # noqa: SLF001


def say_params(run: Run, params: Mapping[str, Any]) -> None:
    """Report params that are known only after the run was made; they take the place of earlier ones."""
    header = Metrics(ts=time.time_ns(), params=plain_mapping("params", params))
    run._session.take_metric(header)  # noqa: SLF001


def finish_event(run: Run) -> threading.Event:
    """Return the event that is set when the run begins to finish; a forked child has one of its own."""
    return run._session._finished  # noqa: SLF001
