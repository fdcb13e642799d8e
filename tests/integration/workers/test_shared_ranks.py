"""Two trainers that run at the same time without a rank, as one job."""

from __future__ import annotations

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain, logs
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.messages import Metrics, Progress
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.jobs.job_lookup import find_job
from trainwire.workers.resources import Resources

KINDS: tuple[Kind, ...] = ("metrics", "logs", "completions")


def _run(sender: Sender, source: str, began_s: int, ended_s: int) -> None:
    """Send the messages of a trainer, with times in seconds after NOW_NS."""
    began = NOW_NS + began_s * SECOND_NS
    running = Metrics(ts=began, progress=Progress(status="running"), heartbeat_s=10, started_at=began)
    end = completion(produced={"metrics": 1, "logs": 1, "completions": 1}, started_at=began)
    end.ts = NOW_NS + ended_s * SECOND_NS
    for body in (running, logs("a"), end):
        body.started_at = began
        sender.send(body, source=source, attempt=0)


def _line(resources: Resources) -> str:
    with resources.engine.connect() as connection:
        job = find_job(connection, 1)
        assert job is not None
        return find_completeness(connection, job).line


def test_trainers_at_the_same_time_are_named(resources: Resources, sender: Sender) -> None:
    """The line of the sum names both sources, and everything of both is stored."""
    _run(sender, "0-a", 0, 20)
    _run(sender, "0-b", 10, 30)
    for kind in KINDS:
        drain(resources, kind)
    assert _line(resources).startswith("complete: 6 messages produced = 6 stored")
    assert _line(resources).endswith("; trainers at the same time: 2 as rank 0 (0-a, 0-b)")


def test_trainers_one_after_the_other_are_not_named(resources: Resources, sender: Sender) -> None:
    """The second began after the end of the first."""
    _run(sender, "0-a", 0, 20)
    _run(sender, "0-b", 21, 30)
    for kind in KINDS:
        drain(resources, kind)
    assert "at the same time" not in _line(resources)
