"""Attempts and completions in the tables, over several drains."""

from __future__ import annotations

import pytest
from sqlalchemy import RowMapping

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain, logs, metrics, one, rows
from trainwire.schemas.keys import Kind
from trainwire.schemas.tables import (
    source_positions,
    training_attempts,
    training_checkpoints,
    training_jobs,
    training_logs,
)
from trainwire.schemas.wire.messages import Body, Checkpoint, Metrics, Point, Progress
from trainwire.workers.resources import Resources


def test_a_failure_leaves_its_traceback_in_the_log(resources: Resources, sender: Sender) -> None:
    """A failed completion's traceback is a stderr row that begins with TRACEBACK:, after the lines before it."""
    sender.send(logs("working"))
    drain(resources)
    sender.send(
        completion("failed", error_message="ValueError: no", traceback="Traceback\n  line 1\nValueError: no")
    )
    drain(resources, "completions")
    assert rows(resources.engine, training_logs, "seq", "log_type", "content") == [
        (1, "stdout", "working"),
        (2, "stderr", "TRACEBACK:\nTraceback\n  line 1\nValueError: no"),
    ]
    job = one(resources.engine, training_jobs, id=1)
    assert (job["status"], job["error_message"], job["last_log_seq"]) == ("failed", "ValueError: no", 2)


def test_a_second_run_of_the_same_job_is_a_second_attempt(resources: Resources, sender: Sender) -> None:
    """Of two runs without a stated attempt the second, which begins after the end of the first, is attempt 2."""
    sender.send(logs("first"), source="0-a", attempt=0)
    sender.send(completion("failed", ts=NOW_NS + SECOND_NS), source="0-a", attempt=0)
    drain(resources)
    drain(resources, "completions")
    later = NOW_NS + 60 * SECOND_NS
    # The completion of the second run is drained before its log lines: completions never wait.
    sender.send(logs("second", ts=later), source="0-b", attempt=0)
    sender.send(completion(ts=later + SECOND_NS, started_at=later), source="0-b", attempt=0)
    drain(resources, "completions")
    drain(resources)
    assert rows(resources.engine, training_logs, "seq", "attempt", "content") == [
        (1, 1, "first"),
        (2, 2, "second"),
    ]
    job = one(resources.engine, training_jobs, id=1)
    assert (job["status"], job["attempt"]) == ("completed", 2)
    positions = rows(resources.engine, source_positions, "source", "kind", "attempt", order=["source", "kind"])
    assert positions == [
        ("0-a", "completions", 1),
        ("0-a", "logs", 1),
        ("0-b", "completions", 2),
        ("0-b", "logs", 2),
    ]


def test_late_lines_of_a_finished_attempt_are_stored(resources: Resources, sender: Sender) -> None:
    """Lines that come after the completion get their rows, and the job stays finished."""
    sender.send(metrics(loss=1.0))
    sender.send(completion())
    drain(resources, "completions")
    sender.send(logs("late"))
    drain(resources)
    drain(resources, "metrics")
    assert rows(resources.engine, training_logs, "content") == ["late"]
    assert one(resources.engine, training_jobs, id=1)["status"] == "completed"


def test_two_trainers_with_one_job_id(resources: Resources, sender: Sender) -> None:
    """Two processes with the same job number lose nothing: each source is counted by itself."""
    for number in range(3):
        sender.send(logs(f"a{number}"), source="0-aaaa")
        sender.send(logs(f"b{number}"), source="0-bbbb")
    drain(resources)
    assert sorted(rows(resources.engine, training_logs, "content")) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert rows(resources.engine, source_positions, "last_seq", order=["source"]) == [3, 3]


def test_the_leftovers_of_an_ended_attempt_begin_no_other(resources: Resources, sender: Sender) -> None:
    """The end of a killed script that arrives after its launcher's belongs to the attempt in which it started."""
    sender.send(completion("failed", exit_code=137), source="0-launcher", attempt=0)
    drain(resources, "completions")
    later = NOW_NS + 60 * SECOND_NS
    end = completion("ended", ts=later, started_at=NOW_NS, produced={"logs": 1, "completions": 0})
    sender.send(end, source="0-script", attempt=0)
    sender.send(logs("last words"), source="0-script", attempt=0)
    drain(resources, "completions")
    drain(resources)
    job = one(resources.engine, training_jobs, id=1)
    assert (job["status"], job["attempt"], job["exit_code"]) == ("failed", 1, 137)
    assert rows(resources.engine, training_logs, "attempt", "content") == [(1, "last words")]


def test_the_counts_of_a_completion_are_stored(resources: Resources, sender: Sender) -> None:
    """The counts of a completion are stored with the positions, also those of kinds without messages."""
    sender.send(logs("a"))
    drain(resources)
    sender.send(completion(produced={"logs": 5, "metrics": 2, "nonsense": 1}, dropped={"logs": 7}))
    drain(resources, "completions")
    found = rows(resources.engine, source_positions, "kind", "last_seq", "produced", "dropped", order=["kind"])
    assert found == [("completions", 1, None, None), ("logs", 1, 5, 7), ("metrics", 0, 2, None)]


def test_each_attempt_has_its_row(resources: Resources, sender: Sender) -> None:
    """An attempt's row stays when the next attempt begins, which has its own params."""
    sender.send(Metrics(ts=NOW_NS, name="first", params={"lr": 1}), source="0-a")
    sender.send(metrics(loss=1.0), source="0-a")
    drain(resources, "metrics")
    sender.send(completion("failed", exit_code=3, error_message="boom"), source="0-a")
    drain(resources, "completions")
    sender.send(Metrics(ts=NOW_NS, name="second"), source="0-b", attempt=2)
    drain(resources, "metrics")
    assert attempts(resources) == [
        (1, "first", "failed", 3, "boom", {"lr": 1}),
        (2, "second", "running", None, None, None),
    ]


def test_an_end_and_a_new_begin_in_one_batch(resources: Resources, sender: Sender) -> None:
    """The end of an attempt is stored also if the next attempt begins in the same transaction."""
    sender.send(completion("failed", exit_code=1), source="0-a")
    sender.send(completion(started_at=NOW_NS + 60 * SECOND_NS, exit_code=0), source="0-b", attempt=2)
    drain(resources, "completions")
    assert [row[:4] for row in attempts(resources)] == [(1, None, "failed", 1), (2, None, "completed", 0)]


def test_a_late_end_belongs_to_its_own_attempt(resources: Resources, sender: Sender) -> None:
    """An attempt without an end is lost once another follows, until its end arrives; the job keeps the newest."""
    sender.send(logs("a"), source="0-a")
    sender.send(logs("b"), source="0-b", attempt=2)
    drain(resources)
    assert [row[:3] for row in attempts(resources)] == [(1, None, "lost"), (2, None, "running")]
    sender.send(metrics(loss=1.0), source="0-a")
    drain(resources, "metrics")
    sender.send(completion("failed", error_message="late"), source="0-a")
    drain(resources, "completions")
    assert [row[2] for row in attempts(resources)] == ["failed", "running"]
    assert one(resources.engine, training_jobs, id=1)["status"] == "running"


def test_late_messages_of_an_unknown_attempt(resources: Resources, sender: Sender) -> None:
    """The first message of an attempt that is already over creates its row."""
    sender.send(logs("newest"), source="0-b", attempt=3)
    drain(resources)
    sender.send(Metrics(ts=NOW_NS, name="old", params={"a": 1}), source="0-a", attempt=1)
    drain(resources, "metrics")
    assert [row[:3] for row in attempts(resources)] == [(1, "old", "lost"), (3, None, "running")]
    assert attempts(resources)[0][5] == {"a": 1}


def test_messages_that_change_no_attempt_are_not_counted(resources: Resources, sender: Sender) -> None:
    """Lines, points and repeated params do not change the attempt's row."""
    for _ in range(3):
        sender.send(Metrics(ts=NOW_NS, name="n", params={"a": float("nan")}, tags={"t": [1, 2]}))
        sender.send(logs("x"))
        drain(resources, "metrics")
        drain(resources)
    assert one(resources.engine, training_attempts, job_id=1)["changes"] == 1


class LateRun:
    """A run of job 1 that began an hour before `NOW_NS`, was 10 minutes long and is sent late from its spool."""

    BEGAN_NS = NOW_NS - 3600 * SECOND_NS

    def __init__(
        self, sender: Sender, source: str = "0-late", began_ns: int = BEGAN_NS, length_s: int = 600
    ) -> None:
        self._sender = sender
        self._source = source
        self._began_ns = began_ns
        self._ended_ns = began_ns + length_s * SECOND_NS

    def send(self, *kinds: str) -> None:
        """Send its messages of these kinds, as the SDK makes them."""
        began = self._began_ns
        bodies: dict[str, Body] = {
            "logs": logs("late", ts=began + SECOND_NS, started_at=began),
            "metrics": Metrics(
                points=[Point(ts=began + SECOND_NS, epoch=1, values={"loss": 9.0})],
                name="late",
                progress=Progress(current_epoch=1),
                started_at=began,
            ),
            "checkpoints": Checkpoint(
                ts=began + SECOND_NS, kind="last", uri="s3://bucket/late.pt", started_at=began
            ),
            "completions": completion("failed", self._ended_ns, exit_code=1, started_at=began),
        }
        for kind in kinds:
            self._sender.send(bodies[kind], source=self._source, attempt=0)


KINDS_IN_ANY_ORDER = [
    ("completions", "metrics", "checkpoints", "logs"),
    ("logs", "checkpoints", "metrics", "completions"),
]


@pytest.fixture(params=["completed", "running"])
def newest(request: pytest.FixtureRequest, resources: Resources, sender: Sender) -> RowMapping:
    """Return the job's row with its newest attempt, which has ended or is running."""
    begin = Metrics(ts=NOW_NS, name="newest", progress=Progress(current_epoch=5), started_at=NOW_NS)
    sender.send(begin, source="0-newest", attempt=0)
    saved = Checkpoint(ts=NOW_NS + 1, kind="last", uri="s3://bucket/newest.pt", started_at=NOW_NS)
    sender.send(saved, source="0-newest", attempt=0)
    drain(resources, "metrics")
    drain(resources, "checkpoints")
    if request.param == "completed":
        end = completion(exit_code=0, final_metrics={"accuracy": 0.9}, started_at=NOW_NS)
        sender.send(end, source="0-newest", attempt=0)
        drain(resources, "completions")
    return one(resources.engine, training_jobs, id=1)


@pytest.mark.parametrize("kinds", KINDS_IN_ANY_ORDER)
def test_a_run_that_is_sent_late_gets_an_earlier_attempt(
    resources: Resources, sender: Sender, newest: RowMapping, kinds: tuple[Kind, ...]
) -> None:
    """A run from before the newest attempt has an attempt of its own, and the job's row stays."""
    LateRun(sender).send(*kinds)
    for kind in kinds:
        drain(resources, kind)
    counts = {"last_log_seq", "last_metric_seq", "last_checkpoint_seq", "last_seen_at"}
    job = one(resources.engine, training_jobs, id=1)
    assert {name for name in job if job[name] != newest[name]} <= counts
    assert [row[:4] for row in attempts(resources)] == [
        (0, "late", "failed", 1),
        (1, "newest", newest["status"], newest["exit_code"]),
    ]
    assert rows(resources.engine, training_logs, "attempt", "content") == [(0, "late")]
    assert rows(resources.engine, training_checkpoints, "attempt", "uri") == [
        (1, "s3://bucket/newest.pt"),
        (0, "s3://bucket/late.pt"),
    ]


def test_a_run_that_comes_after_a_late_one_is_the_next_attempt(
    resources: Resources, sender: Sender, newest: RowMapping
) -> None:
    """Late attempts are numbered downwards, so that a newer run has the number after the newest one."""
    LateRun(sender).send("completions")
    if newest["status"] != "completed":
        sender.send(completion(started_at=NOW_NS), source="0-newest", attempt=0)
    drain(resources, "completions")
    later = NOW_NS + 60 * SECOND_NS
    sender.send(logs("next", ts=later, started_at=later), source="0-next", attempt=0)
    drain(resources)
    assert [row[0] for row in attempts(resources)] == [0, 1, 2]
    assert one(resources.engine, training_jobs, id=1)["attempt"] == 2


def test_the_ranks_of_a_late_run_share_an_attempt(
    resources: Resources, sender: Sender, newest: RowMapping
) -> None:
    """Ranks of a late run whose clocks differ by seconds share an attempt; a run of another hour has its own."""
    began = LateRun.BEGAN_NS
    LateRun(sender, "0-late").send("logs")
    LateRun(sender, "1-late", began - 3 * SECOND_NS).send("logs")
    LateRun(sender, "0-older", began - 3600 * SECOND_NS).send("completions", "logs")
    drain(resources, "completions")
    drain(resources)
    LateRun(sender, "2-late", began + 20 * SECOND_NS).send("logs", "completions")
    drain(resources)
    drain(resources, "completions")
    found = rows(resources.engine, training_logs, "source", "attempt", order=["source"])
    of = dict(found)
    assert of["0-late"] == of["1-late"] == of["2-late"] != of["0-older"]
    assert {of["0-late"], of["0-older"]} == {0, -1}
    assert one(resources.engine, training_jobs, id=1)["attempt"] == newest["attempt"]


def test_a_late_rank_joins_the_attempt_it_was_part_of(
    resources: Resources, sender: Sender, newest: RowMapping
) -> None:
    """A late rank belongs to the attempt that was running when it began, not to the newest."""
    if newest["status"] != "completed":
        sender.send(completion(started_at=NOW_NS), source="0-newest", attempt=0)
        drain(resources, "completions")
    later = NOW_NS + 3600 * SECOND_NS
    sender.send(logs("next", ts=later, started_at=later), source="0-next", attempt=0)
    drain(resources)
    sender.send(logs("rank 1", ts=NOW_NS, started_at=NOW_NS), source="1-newest", attempt=0)
    drain(resources)
    assert dict(rows(resources.engine, training_logs, "content", "attempt")) == {"next": 2, "rank 1": 1}


@pytest.mark.parametrize("offset_s", [-60, -3, 3, 60])
def test_ranks_that_begin_at_different_times_are_one_attempt(
    resources: Resources, sender: Sender, offset_s: int
) -> None:
    """A rank may begin a minute before or after the first one to arrive, or have a clock that differs."""
    began = NOW_NS + offset_s * SECOND_NS
    sender.send(logs("rank 0", started_at=NOW_NS), source="0-rank", attempt=0)
    drain(resources)
    sender.send(logs("rank 1", ts=began, started_at=began), source="1-rank", attempt=0)
    drain(resources)
    end = completion("failed", ts=began + 120 * SECOND_NS, rank=1, world_size=2, started_at=began)
    sender.send(end, source="1-rank", attempt=0)
    drain(resources, "completions")
    assert [row[:3] for row in attempts(resources)] == [(1, None, "failed")]


@pytest.mark.parametrize("kinds", KINDS_IN_ANY_ORDER)
def test_a_run_that_ended_just_before_the_newest_attempt_began_does_not_end_it(
    resources: Resources, sender: Sender, newest: RowMapping, kinds: tuple[Kind, ...]
) -> None:
    """The end of a process that was restarted at once does not end the newest attempt, whichever has its rows."""
    LateRun(sender, began_ns=NOW_NS - 12 * SECOND_NS, length_s=10).send(*kinds)
    for kind in kinds:
        drain(resources, kind)
    job = one(resources.engine, training_jobs, id=1)
    results = ("attempt", "status", "exit_code", "completed_at", "final_metrics", "error_message")
    assert {name: job[name] for name in results} == {name: newest[name] for name in results}


def attempts(resources: Resources) -> list[tuple[object, ...]]:
    """Return the attempts of job 1."""
    columns = ("attempt", "name", "status", "exit_code", "error_message", "params")
    return rows(resources.engine, training_attempts, *columns, order=["attempt"])
