"""Metrics and attempts in a real MLflow server: each value once, a run per attempt, its end after the last."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import RowMapping, text

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain, logs, one, rows
from tests.mlflow_server import MlflowServer
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.tables import dead_letters, delivery_cursors, sink_states, training_attempts, training_jobs
from trainwire.schemas.wire.messages import Metrics, Point, Progress
from trainwire.stores.mlflow.http import MlflowApi
from trainwire.stores.mlflow.runs import MlflowRun, get_run, get_run_metrics, search_runs
from trainwire.workers.liveness.heartbeat_reader import Heartbeats
from trainwire.workers.liveness.job_status import LostRule, update_statuses
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.base import SinkUnavailable
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.mlflow.backlog import GRACE_S, MetricBacklog
from trainwire.workers.sinks.mlflow.plugin import mlflow_api
from trainwire.workers.sinks.mlflow.rows import DeliveredMetrics, MetricBatch
from trainwire.workers.sinks.mlflow.run import SEARCHED_VALUES
from trainwire.workers.sinks.mlflow.sink import MlflowSink

HOUR_S = 3600.0
NOW_MS = NOW_NS // 10**6
AT = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=(NOW_NS + SECOND_NS) // 10**6 * 1000)


@dataclass
class Mirror:
    """A worker that mirrors into an experiment of its own, and reads its runs."""

    resources: Resources
    server: MlflowServer
    experiment: str = field(default_factory=lambda: f"test-{uuid.uuid4()}")

    @property
    def api(self) -> MlflowApi:
        """The connection that the worker has."""
        return mlflow_api(self.server.url)

    @property
    def sink(self) -> MlflowSink:
        """Return the sink as a task creates it."""
        return MlflowSink(self.api, self.experiment)

    def run(self, *kinds: Any, sink: Any = None, grace_s: float = GRACE_S) -> None:
        """Drain these kinds, then deliver like a task."""
        for kind in kinds or ("metrics", "completions"):
            drain(self.resources, kind)
        backoff = Backoff(first_s=1000, cap_s=1000)
        Delivery(
            self.resources.engine,
            MetricBacklog("mlflow", grace_s),
            sink or self.sink,
            slice_s=60,
            backoff=backoff,
        ).run()

    def runs(self) -> list[MlflowRun]:
        """All runs of the experiment, the first attempt first."""
        found = self.api.get("experiments/get-by-name", experiment_name=self.experiment)["experiment"]
        runs = search_runs(self.api, [found["experiment_id"]], "", limit=100)
        return sorted(runs, key=lambda run: (run.tags["job_id"], run.tags["attempt"]))

    def the_run(self) -> MlflowRun:
        """The only run."""
        (run,) = self.runs()
        return run

    def values(self, name: str) -> list[tuple[int, float]]:
        """The points of a metric of the only run, as (step, value)."""
        run = self.the_run()
        return [(point.step, point.value) for point in get_run_metrics(self.api, run.run_id, [name])[name]]


@pytest.fixture
def mirror(resources: Resources, mlflow_server: MlflowServer) -> Mirror:
    """A worker on an empty database, with an empty experiment."""
    return Mirror(resources, mlflow_server)


@pytest.fixture
def own_mirror(resources: Resources, tmp_path: Path) -> Iterator[Mirror]:
    """A worker with an MLflow server that no other test uses, so that it may be killed."""
    server = MlflowServer(tmp_path).start()
    yield Mirror(resources, server)
    server.kill()


def points(count: int, first: int = 0, **values: float) -> Metrics:
    """Points of consecutive steps, a millisecond apart."""
    return Metrics(
        points=[
            Point(ts=NOW_NS + step * 10**6, step=step, values=values or {"loss": float(step)})
            for step in range(first, first + count)
        ]
    )


def begin(**said: Any) -> Metrics:
    """The first message of a run."""
    return Metrics(ts=NOW_NS, progress=Progress(status="running"), **said)


def attempt_row(resources: Resources, attempt: int = 1) -> RowMapping:
    """An attempt of job 1 in Postgres."""
    return one(resources.engine, training_attempts, job_id=1, attempt=attempt)


class Crash(BaseException):
    """Simulates the death of the worker; no code catches it."""


class CrashingSink(MlflowSink):
    """Sends all requests to MLflow, and crashes before the commit."""

    def deliver(self, job_id: int, batch: MetricBatch) -> Iterator[DeliveredMetrics]:
        """Deliver, then crash."""
        next(super().deliver(job_id, batch))
        raise Crash


def test_a_job_is_a_run_from_begin_to_end(mirror: Mirror, sender: Sender) -> None:
    """The run has name, params, tags, values with steps and times, and the end; the job has the run's id."""
    sender.send(begin(name="resnet", params={"lr": 0.1, "layers": [1, 2], "seed": None}, tags={"team": "vision"}))
    sender.send(points(3, loss=0.5, accuracy=0.0, top5=1.0))
    mirror.run()
    run = mirror.the_run()
    assert (run.name, run.status, run.ended_at) == ("resnet", "RUNNING", None)
    assert run.started_at == datetime.fromtimestamp(NOW_MS / 1000, UTC)
    assert run.params == {"lr": "0.1", "layers": "[1, 2]", "seed": "None"}
    expected = {"team": "vision", "job_id": "1", "attempt": "1", "mlflow.source.name": "trainwire"}
    assert expected.items() <= run.tags.items()
    assert one(mirror.resources.engine, training_jobs, id=1)["mlflow_run_id"] == run.run_id
    history = get_run_metrics(mirror.api, run.run_id, ["accuracy", "top5"])
    assert [(point.step, point.ts_ms, point.value) for point in history["accuracy"]] == [
        (0, NOW_MS, 0.0),
        (1, NOW_MS + 1, 0.0),
        (2, NOW_MS + 2, 0.0),
    ]
    assert len(history["top5"]) == 3

    sender.send(completion(ts=NOW_NS + SECOND_NS, produced={"metrics": 2}))
    mirror.run()
    run = mirror.the_run()
    assert (run.status, run.ended_at) == ("FINISHED", AT)
    assert one(mirror.resources.engine, delivery_cursors, sink="mlflow", job_id=1)["confirmed_seq"] == 3


def test_a_step_is_the_step_or_the_epoch_or_nothing(mirror: Mirror, sender: Sender) -> None:
    """Without a step the epoch counts, without both it is 0."""
    values = {"loss": 1.0}
    made = [
        Point(ts=NOW_NS, step=7, epoch=1, values=values),
        Point(ts=NOW_NS, epoch=2, values=values),
        Point(ts=NOW_NS, values=values),
    ]
    sender.send(Metrics(points=made))
    mirror.run()
    assert mirror.values("loss") == [(0, 1.0), (2, 1.0), (7, 1.0)]


def test_nan_and_infinities_pass(mirror: Mirror, sender: Sender) -> None:
    """NaN and infinities arrive; MLflow on SQL stores infinities as the largest number."""
    made = [
        Point(ts=NOW_NS, step=step, values={"loss": value, "other": value})
        for step, value in enumerate([math.nan, math.inf, -math.inf])
    ]
    sender.send(Metrics(points=made))
    mirror.run()
    for name in ("loss", "other"):
        (_, nan), (_, highest), (_, lowest) = mirror.values(name)
        assert math.isnan(nan)
        assert highest > 1e308
        assert lowest < -1e308


def test_the_end_waits_for_the_last_metric(mirror: Mirror, sender: Sender) -> None:
    """A completion that overtakes its metrics ends the run only after all of them are sent."""
    sender.send(begin())
    for number in range(3):
        sender.send(points(2, first=2 * number))
    sender.send(completion("failed", produced={"metrics": 4}))
    drain(mirror.resources, "completions")
    mirror.run("completions")
    assert delivered_runs(mirror) == 0  # it was never begun: nothing is known but its end
    mirror.run("metrics")
    assert mirror.the_run().status == "FAILED"
    assert len(mirror.values("loss")) == 6


def test_an_end_without_its_metrics_comes_after_the_grace(mirror: Mirror, sender: Sender) -> None:
    """Metrics that never arrive delay the end by the grace period, without deliveries in a loop."""
    sender.send(points(1))
    sender.send(completion(produced={"metrics": 9}))
    mirror.run()
    assert mirror.the_run().status == "RUNNING"
    with mirror.resources.engine.begin() as connection:
        assert MetricBacklog("mlflow").jobs_behind(connection, 10) == []
        connection.execute(text("UPDATE source_positions SET updated_at = now() - interval '61 s'"))
    mirror.run()
    assert mirror.the_run().status == "FINISHED"


def test_a_trainer_that_was_killed(mirror: Mirror, sender: Sender) -> None:
    """An attempt without an end is KILLED after the grace period once another follows; each has its own run."""
    sender.send(begin(name="first", params={"lr": 1}), source="0-a")
    sender.send(points(2), source="0-a")
    mirror.run(grace_s=HOUR_S)
    sender.send(begin(name="second", params={"lr": 2}), source="0-b", attempt=2)
    sender.send(points(3), source="0-b", attempt=2)
    mirror.run(grace_s=HOUR_S)
    assert [run.status for run in mirror.runs()] == ["RUNNING", "RUNNING"]
    mirror.run(grace_s=0)
    first, second = mirror.runs()
    assert (first.name, first.status, first.params["lr"]) == ("first", "KILLED", "1")
    assert (second.name, second.status, second.params["lr"]) == ("second", "RUNNING", "2")
    lengths = [len(get_run_metrics(mirror.api, run.run_id, ["loss"])["loss"]) for run in (first, second)]
    assert lengths == [2, 3]
    assert one(mirror.resources.engine, training_jobs, id=1)["mlflow_run_id"] == second.run_id


def test_a_lost_job_is_running_again_in_mlflow(mirror: Mirror, sender: Sender) -> None:
    """The run of a lost job is KILLED; if the job comes back it is RUNNING again, and ends normally."""
    sender.send(begin(name="cut off"))
    mirror.run()
    lose(mirror.resources)
    mirror.run(grace_s=0)
    assert mirror.the_run().status == "KILLED"
    sender.send(points(1, loss=0.5))
    mirror.run()
    assert (mirror.the_run().status, mirror.values("loss")) == ("RUNNING", [(0, 0.5)])
    sender.send(completion(produced={"metrics": 2}))
    mirror.run()
    assert mirror.the_run().status == "FINISHED"


def lose(resources: Resources) -> None:
    """Mark job 1 as lost, like that of a trainer without a heartbeat for a day."""
    day_s = 86_400
    with resources.engine.begin() as connection:
        connection.execute(
            text("UPDATE training_jobs SET watched_attempt = 1, last_seen_at = now() - interval '1 day'")
        )
    assert update_statuses(resources.engine, Heartbeats([day_s * 1000], [0], {}), LostRule(day_s / 2))


def test_a_late_end_of_the_attempt_before(mirror: Mirror, sender: Sender) -> None:
    """The second attempt's metrics overtake the first one's failure, which still reaches its run."""
    sender.send(points(1), source="0-a")
    sender.send(points(1), source="0-b", attempt=2)
    mirror.run()
    sender.send(
        completion("failed", exit_code=3, error_message="boom", produced={"metrics": 1}), source="0-a", attempt=1
    )
    mirror.run()
    first, second = mirror.runs()
    assert (first.status, first.ended_at, second.status) == ("FAILED", AT, "RUNNING")
    row = attempt_row(mirror.resources)
    assert (row["status"], row["exit_code"], row["error_message"]) == ("failed", 3, "boom")
    job = one(mirror.resources.engine, training_jobs, id=1)
    assert (job["status"], job["attempt"], job["exit_code"]) == ("running", 2, None)


def test_ranks_have_names_of_their_own(mirror: Mirror, sender: Sender) -> None:
    """Metrics of rank 0 keep their names; those of other ranks have a prefix."""
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={"loss": 1.0})], rank=0), source="0-a")
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={"loss": 2.0})], rank=1), source="1-a")
    mirror.run()
    assert mirror.the_run().metrics == {"loss": 1.0, "rank_1/loss": 2.0}


def test_hostile_names_arrive_under_others(mirror: Mirror, sender: Sender) -> None:
    """Values of metrics with any name arrive, each under its own name, and notes have the changed names."""
    names = ["", "<b>x</b>", "a\nb", "a_b", "../../etc", "/", ".", "x" * 1_000, "loss\n", "a@b", "ä:b c", "a//b"]
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={name: float(n) for n, name in enumerate(names)})]))
    mirror.run()
    run = mirror.the_run()
    assert sorted(run.metrics.values()) == [float(n) for n in range(len(names))]
    assert (run.metrics["a_b"], run.metrics["ä:b c"]) == (3.0, 10.0)
    notes = attempt_row(mirror.resources)["mirror_notes"]
    assert len(notes) == len(names) - 2
    assert run.metrics[notes["metric a@b"].removeprefix("is called ")] == 9.0
    assert rows(mirror.resources.engine, dead_letters, "id", order=["id"]) == []


def test_many_and_long_params(mirror: Mirror, sender: Sender) -> None:
    """300 params are several requests, 20 kB are shortened, tags with reserved names are renamed."""
    params = {f"p{n}": n for n in range(300)} | {"long": "v" * 20_000, "": "no name", "nothing": None}
    tags = {"mlflow.runName": "mine", "job_id": "mine", "note": "n" * 20_000, "a\nb": True}
    sender.send(begin(params=params, tags=tags))
    sender.send(points(1))
    mirror.run()
    run = mirror.the_run()
    assert {f"p{n}": str(n) for n in range(300)}.items() <= run.params.items()
    assert (len(run.params), run.params["nothing"], run.name) == (303, "None", "job 1")
    assert len(run.params["long"]) == 6000
    assert run.params["long"].endswith("… (20,000 characters)")
    assert (run.tags["job_id"], run.tags["user.job_id"], run.tags["user.mlflow.runName"]) == ("1", "mine", "mine")
    notes = attempt_row(mirror.resources)["mirror_notes"]
    assert notes["param long"] == "is cut after 6,000 of 20,000 characters"
    assert {"param ", "tag note", "tag a\nb", "tag job_id"} <= notes.keys()


def test_a_changed_param_keeps_its_first_value(mirror: Mirror, sender: Sender) -> None:
    """A param keeps its first value; the new one is a tag, with a note. New params and names are mirrored."""
    sender.send(begin(name="old", params={"lr": 1, "same": 1}))
    mirror.run()
    sender.send(begin(name="new", params={"lr": 2, "same": 1, "more": 3}))
    mirror.run()
    run = mirror.the_run()
    assert run.params == {"lr": "1", "same": "1", "more": "3"}
    assert (run.tags["changed_param/lr"], run.name) == ("2", "new")
    assert "changed_param/lr" in attempt_row(mirror.resources)["mirror_notes"]["param lr"]


def test_a_crash_between_push_and_commit_writes_nothing_twice(mirror: Mirror, sender: Sender) -> None:
    """After a crash no run and no point is duplicated, also if more messages have arrived."""
    sender.send(begin(params={"lr": 1}))
    sender.send(points(1500))
    with pytest.raises(Crash):
        mirror.run(sink=CrashingSink(mirror.api, mirror.experiment))
    assert attempt_row(mirror.resources)["mirror_run_id"] is None
    sender.send(points(10, first=1500))
    sender.send(completion(produced={"metrics": 3}))
    mirror.run()
    assert mirror.values("loss") == [(n, float(n)) for n in range(1510)]
    assert mirror.the_run().status == "FINISHED"


def test_a_server_that_is_killed_in_the_middle(own_mirror: Mirror, sender: Sender) -> None:
    """After an outage amid a delivery all points are there once, and the outage costs one probe at a time."""
    mirror = own_mirror
    sender.send(points(4000))
    killer = KillingApi(mirror.server, mirror.api, after=3)
    with pytest.raises(SinkUnavailable, match="does not answer"):
        mirror.run(sink=MlflowSink(killer, mirror.experiment))
    state = one(mirror.resources.engine, sink_states, sink="mlflow")
    assert state["attempts"] == 1
    sender.send(points(10, first=4000))  # Postgres stores points that arrive meanwhile
    mirror.run()  # the probe is not due: nothing is sent
    assert one(mirror.resources.engine, training_jobs, id=1)["last_metric_seq"] == 4010
    mirror.server.start()
    with mirror.resources.engine.begin() as connection:
        connection.execute(text("UPDATE sink_states SET next_probe_at = now()"))
    mirror.run()
    assert mirror.values("loss") == [(n, float(n)) for n in range(4010)]
    assert one(mirror.resources.engine, sink_states, sink="mlflow")["down_since"] is None


def test_a_value_that_mlflow_refuses_is_a_dead_letter(mirror: Mirror, sender: Sender) -> None:
    """A refused value is found by bisection and dead-lettered with MLflow's error; the others arrive."""
    sender.send(points(20))
    refusing = RefusingApi(mirror.api, lambda metric: metric["step"] == 13)
    mirror.run(sink=MlflowSink(refusing, mirror.experiment))
    assert mirror.values("loss") == [(n, float(n)) for n in range(20) if n != 13]
    ((stream, kind, seq, detail),) = rows(
        mirror.resources.engine, dead_letters, "stream", "kind", "seq", "detail", order=["id"]
    )
    assert (stream, kind, seq) == ("sink:mlflow", "metrics", 14)
    assert "metric loss" in detail
    assert "must be" in detail


def test_a_job_of_which_much_is_refused_has_short_turns(mirror: Mirror, sender: Sender) -> None:
    """A turn has a limit of requests; each refused value is dead-lettered, the others arrive."""
    sender.send(points(250))
    refusing = RefusingApi(mirror.api, lambda metric: metric["step"] < 150)
    sink = CountingSink(refusing, mirror.experiment)
    mirror.run(sink=sink)
    assert max(sink.batches) <= 1 + 2 * SEARCHED_VALUES
    assert mirror.values("loss") == [(n, float(n)) for n in range(150, 250)]
    buried = rows(mirror.resources.engine, dead_letters, "seq", order=["seq"])
    assert buried == list(range(1, 151))


def test_a_run_deleted_in_mlflow_is_left_alone(mirror: Mirror, sender: Sender) -> None:
    """No more values of that attempt are sent, with a note; the cursor moves on."""
    sender.send(points(2))
    mirror.run()
    run_id = mirror.the_run().run_id
    mirror.api.post("runs/delete", run_id=run_id)
    sender.send(points(2, first=2))
    sender.send(completion(produced={"metrics": 2}))
    mirror.run()
    assert mirror.runs() == []
    assert one(mirror.resources.engine, delivery_cursors, sink="mlflow", job_id=1)["confirmed_seq"] == 4
    row = attempt_row(mirror.resources)
    assert row["changes"] == row["mirrored_changes"]
    assert row["mirror_notes"]["stopped"] == f"run {run_id} was deleted in MLflow: a replay makes a new one"


def test_a_deleted_experiment_holds_the_cursor(mirror: Mirror, sender: Sender) -> None:
    """Deliveries wait until it is restored; the error has the remedy."""
    sender.send(points(1))
    made = mirror.api.post("experiments/create", name=mirror.experiment)["experiment_id"]
    mirror.api.post("experiments/delete", experiment_id=made)
    with pytest.raises(SinkUnavailable, match="is deleted in MLflow: restore it there, or name another one"):
        mirror.run()
    mirror.api.post("experiments/restore", experiment_id=made)
    with mirror.resources.engine.begin() as connection:
        connection.execute(text("UPDATE sink_states SET next_probe_at = now()"))
    mirror.run()
    assert mirror.values("loss") == [(0, 0.0)]


def test_a_trainer_that_logs_by_itself_is_only_linked(mirror: Mirror, sender: Sender) -> None:
    """The job of a trainer with its own run is not mirrored; the cursor moves on."""
    sender.send(begin(mlflow_run_id="theirs"))
    sender.send(points(5))
    sender.send(completion())
    mirror.run()
    assert delivered_runs(mirror) == 0
    assert one(mirror.resources.engine, delivery_cursors, sink="mlflow", job_id=1)["confirmed_seq"] == 5
    assert one(mirror.resources.engine, training_jobs, id=1)["mlflow_run_id"] == "theirs"
    row = attempt_row(mirror.resources)
    assert (row["mirror_run_id"], row["changes"] == row["mirrored_changes"]) == (None, True)


def test_a_trainer_that_reports_its_run_late(mirror: Mirror, sender: Sender) -> None:
    """The mirror ends and names the trainer's run, and no more values are sent."""
    sender.send(points(2))
    mirror.run()
    ours = mirror.the_run().run_id
    sender.send(points(2, first=2))
    sender.send(Metrics(mlflow_run_id="theirs"))
    mirror.run()
    run = mirror.the_run()
    assert (run.status, run.tags["superseded_by"]) == ("KILLED", "theirs")
    assert len(mirror.values("loss")) == 2
    assert one(mirror.resources.engine, training_jobs, id=1)["mlflow_run_id"] == "theirs"
    row = attempt_row(mirror.resources)
    assert (row["mlflow_run_id"], row["mirror_run_id"]) == ("theirs", ours)


def test_our_run_is_never_taken_for_the_trainers(mirror: Mirror, sender: Sender) -> None:
    """The run id that the mirror wrote to the job is not taken for the trainer's own."""
    sender.send(points(1))
    mirror.run()
    sender.send(begin(name="renamed"))
    sender.send(completion(produced={"metrics": 2}))
    mirror.run()
    row = attempt_row(mirror.resources)
    assert (row["mlflow_run_id"], row["mirror_run_id"], row["name"]) == (None, mirror.the_run().run_id, "renamed")
    assert mirror.the_run().status == "FINISHED"


def test_the_same_job_number_in_another_database_is_another_run(mirror: Mirror, sender: Sender) -> None:
    """The run of a job of the same number in an earlier database is not changed."""
    sender.send(points(1))
    mirror.run()
    with mirror.resources.engine.begin() as connection:
        for table in ("training_jobs", "training_attempts", "training_metrics", "source_positions"):
            connection.execute(text(f"TRUNCATE {table}"))
        connection.execute(text("TRUNCATE delivery_cursors"))
    sender.send(points(3), source="0-b")
    mirror.run()
    assert len(mirror.runs()) == 2


def test_repeated_params_are_no_change(mirror: Mirror, sender: Sender) -> None:
    """A trainer that repeats its params with every message causes no request beyond its metrics."""
    for number in range(3):
        sender.send(begin(name="n", params={"a": [1.0, math.nan]}, tags={"t": 1}))
        sender.send(points(1, first=number))
        sender.send(logs("line"))
        mirror.run("metrics", "logs")
    row = attempt_row(mirror.resources)
    assert (row["changes"], row["mirrored_changes"]) == (1, 1)


def delivered_runs(mirror: Mirror) -> int:
    """How many runs there are, with or without an experiment."""
    found = mirror.api.post("experiments/search", max_results=1, filter=f"name = '{mirror.experiment}'")
    return len(mirror.runs()) if found.get("experiments") else 0


class KillingApi(MlflowApi):
    """Kills the server after a number of batches of metrics."""

    def __init__(self, server: MlflowServer, api: MlflowApi, after: int) -> None:
        super().__init__(api._send)
        self._server = server
        self._left = after

    def post(self, endpoint: str, **fields: Any) -> dict[str, Any]:
        """Post, and kill when it is time."""
        if endpoint == "runs/log-batch":
            self._left -= 1
            if self._left == 0:
                self._server.kill()
        return super().post(endpoint, **fields)


class RefusingApi(MlflowApi):
    """Changes some metrics so that the real server refuses them."""

    def __init__(self, api: MlflowApi, is_bad: Callable[[Mapping[str, Any]], bool]) -> None:
        super().__init__(api._send)
        self._is_bad = is_bad
        self.batches = 0

    def post(self, endpoint: str, **fields: Any) -> dict[str, Any]:
        """Post, with times that MLflow does not take."""
        self.batches += endpoint == "runs/log-batch"
        sent: Sequence[dict[str, Any]] = fields.get("metrics", ())
        for metric in sent:
            if self._is_bad(metric):
                metric["timestamp"] = -1
        return super().post(endpoint, **fields)


class CountingSink(MlflowSink):
    """Counts the batches that each turn has sent."""

    def __init__(self, api: RefusingApi, experiment: str) -> None:
        super().__init__(api, experiment)
        self._counting = api
        self.batches: list[int] = []

    def deliver(self, job_id: int, batch: MetricBatch) -> Iterator[DeliveredMetrics]:
        """Deliver, and count."""
        before = self._counting.batches
        delivered = next(super().deliver(job_id, batch))
        self.batches.append(self._counting.batches - before)
        yield delivered


def test_get_run_of_an_unknown_run(mirror: Mirror) -> None:
    """An unknown run is None, not an error."""
    assert get_run(mirror.api, "0" * 32) is None
