"""Jobs for the tests of the charts, sent and drained as those of trainers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from sqlalchemy import Engine, func, insert

from tests.factories import NOW_NS, Sender, completion, drain, logs
from trainwire.schemas.tables import alerts, sink_states
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.postgres.alerts import ALERT_STATES, health_key
from trainwire.workers.resources import Resources

STEP_NS = 1_000_000_000


class Seeds:
    """Stores jobs with metrics and lines; the time of a step is a second after that of the step before."""

    def __init__(self, sender: Sender, resources: Resources) -> None:
        self._sender = sender
        self._resources = resources

    def points(
        self,
        job: int,
        values: Callable[[int], Mapping[str, float]],
        steps: Iterable[int],
        *,
        rank: int | None = None,
        attempt: int = 1,
        name: str | None = None,
    ) -> None:
        """Store `values(step)` of one rank."""
        points = [Point(ts=NOW_NS + step * STEP_NS, step=step, values=dict(values(step))) for step in steps]
        body = Metrics(points=points, rank=rank, name=name)
        self._sender.send(body, job=job, source=f"{rank or 0}-{attempt}", attempt=attempt)
        drain(self._resources, "metrics", job)

    def lines(self, job: int, *lines: str) -> None:
        """Store lines, one microsecond apart."""
        self._sender.send(logs(*lines), job=job)
        drain(self._resources, "logs", job)

    def end(self, job: int) -> None:
        """Complete a job."""
        self._sender.send(completion(), job=job, source="0-1")
        drain(self._resources, "completions", job)

    def ranks(self, job: int, ranks: int = 4, steps: int = 40) -> None:
        """Store a job with a loss and an accuracy of several ranks: at the last step the loss is 1 + rank."""
        for rank in range(ranks):

            def values(step: int, rank: int = rank) -> dict[str, float]:
                return {"loss": (1 + rank) * (2 - step / (steps - 1)), "accuracy": step / steps / (1 + rank / 9)}

            self.points(job, values, range(steps), rank=rank, name="ddp")

    def many(self, job: int, names: Iterable[str], steps: int = 30) -> None:
        """Store a job with these metrics."""
        found = list(names)
        self.points(
            job,
            lambda step: {name: math.exp(-step / 9) + number % 7 for number, name in enumerate(found)},
            range(steps),
            name=f"many {job}",
        )


def add_alerts(engine: Engine, times: int = 1) -> None:
    """Store alerts of job 7 in each state, and an outage of their destination."""
    error = "the webhook answered 503"
    with engine.begin() as connection:
        for number, state in enumerate(ALERT_STATES * times, 1):
            alert = {
                "rule": "failed or lost",
                "destination": "ops",
                "occurrence": str(number),
                "state": state,
                "level": ("error", "warning", "info")[number % 3],
                "job_id": 7,
                "attempt": 1,
                "title": f"Job 7 is {state} <b>",
                "content": "CUDA out of memory",
                "attempts": 2,
                "last_error": None if state == "sent" else error,
                "occurred_at": func.now(),
            }
            connection.execute(insert(alerts).values(alert))
        down = {"sink": health_key("ops"), "attempts": 2, "down_since": func.now(), "last_error": error}
        connection.execute(insert(sink_states).values(down))
