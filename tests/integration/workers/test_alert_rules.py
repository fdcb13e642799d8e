"""What alert rules report, with real messages, Postgres and Redis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import func, select

from tests.factories import Sender, completion, drain, logs, metrics
from tests.integration.workers.alert_fixtures import Alerts, now_ns
from tests.webhook_receiver import receiving
from trainwire.schemas.keys import alive_field, alive_key, shard_of
from trainwire.schemas.tables import alert_occurrences
from trainwire.schemas.wire.heartbeats import Heartbeat, encode_heartbeat
from trainwire.schemas.wire.messages import Alert, Metrics, Outcome
from trainwire.stores.postgres.alerts import CURSOR
from trainwire.stores.postgres.jobs.stop_requests import request_stop
from trainwire.workers.alerts.recorded import forget_occurrences
from trainwire.workers.liveness.heartbeat_reader import read_heartbeats
from trainwire.workers.liveness.job_status import LostRule, update_statuses
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.cursors import await_lease


@pytest.fixture
def alerts(resources: Resources, tmp_path: Path) -> Iterator[Alerts]:
    """Alert rules with a local webhook."""
    with receiving() as receiver:
        yield Alerts(resources, receiver, tmp_path / "alerts.toml")


def _beat(client: redis.Redis, **fields: object) -> None:
    seconds, micros = client.time()
    job = 1
    beat = Heartbeat(job=job, source="0-test", at=seconds * 1000 + micros // 1000, **fields)  # type: ignore[arg-type]
    client.hset(alive_key(shard_of(job, 4)), alive_field(job, "0-test"), encode_heartbeat(beat))


def test_each_end_is_reported_once(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """A failed attempt is one alert with its error; applying rules again, or a resent message, adds none."""
    alerts.begin('on = ["failed", "lost"]')
    sender.send(Metrics(name="digits"), job=1)
    drain(resources, "metrics")
    ends: list[tuple[int, Outcome]] = [(1, "failed"), (2, "completed")]
    for job, status in ends:
        sender.send(completion(status, ts=now_ns(), error_message="CUDA out of memory"), job=job)
        sender.send(completion(status, ts=now_ns(), error_message="CUDA out of memory"), job=job, seq=1)
        drain(resources, "completions", job)
    alerts.apply()
    alerts.apply()
    (alert,) = alerts.log
    assert (alert.title, alert.content, alert.level) == ("Job 1 (digits) failed", "CUDA out of memory", "error")
    assert (alert.job_id, alert.attempt, alert.state) == (1, 1, "waiting")


def test_a_stopped_job_names_who_asked(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """The alert of a stopped attempt names the user who asked, and has the reason of the request."""
    alerts.begin('on = ["stopped"]')
    sender.send(Metrics(name="digits"), job=1)
    drain(resources, "metrics")
    with resources.engine.begin() as connection:
        request_stop(connection, 1, "anna", "the loss does not fall")
    sender.send(completion(stopped=True, ts=now_ns()), job=1)
    drain(resources, "completions")
    alerts.apply()
    (alert,) = alerts.log
    assert (alert.title, alert.content) == ("Job 1 (digits) was stopped by anna", "the loss does not fall")


def test_an_occurrence_of_a_locked_job_waits(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """An end is reported later, and not lost, if another transaction holds the lock of the job at that moment."""
    alerts.begin('on = ["failed"]')
    sender.send(completion("failed", ts=now_ns()), job=1)
    drain(resources, "completions")
    with resources.engine.begin() as other:
        await_lease(other, CURSOR, 1)
        alerts.apply()
        assert alerts.log == []
    alerts.apply()
    assert alerts.column("job_id") == [1]


def test_every_attempt_and_every_change_counts(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """Attempts that fail are reported each; a completion that contradicts is another occurrence."""
    alerts.begin('on = ["failed", "completed"]')
    sender.send(completion("completed", ts=now_ns()), attempt=1)
    drain(resources, "completions")
    sender.send(completion("failed", ts=now_ns()), attempt=1, source="1-test")
    sender.send(completion("failed", ts=now_ns()), attempt=2)
    drain(resources, "completions")
    alerts.apply()
    assert alerts.column("title") == ["Job 1 has completed", "Job 1 failed", "Job 1 failed (attempt 2)"]


def test_an_attempt_that_a_newer_one_replaces_is_not_reported_as_lost(
    alerts: Alerts, resources: Resources, sender: Sender
) -> None:
    """Its own end may arrive late; until then nothing is known about it."""
    alerts.begin('on = ["lost", "failed"]')
    sender.send(metrics(now_ns(), loss=1.0), attempt=1)
    sender.send(metrics(now_ns(), loss=1.0), attempt=2, source="1-test")
    drain(resources, "metrics")
    alerts.apply()
    assert alerts.log == []
    sender.send(completion("failed", ts=now_ns()), attempt=1)
    drain(resources, "completions")
    alerts.apply()
    assert alerts.column("attempt") == [1]


def test_a_lost_job_is_reported_by_liveness(
    alerts: Alerts, resources: Resources, sender: Sender, client: redis.Redis
) -> None:
    """A job whose heartbeats cease is reported with the reason, and again when that happens again."""
    alerts.begin('on = "lost"')
    sender.send(Metrics(heartbeat_s=10, ts=now_ns()))
    drain(resources, "metrics")
    rule = LostRule(0.0)
    for _ in range(2):
        _beat(client)
        update_statuses(resources.engine, read_heartbeats(client, 4, 60), LostRule(60))
        client.delete(alive_key(1))
        read_heartbeats(client, 4, 60)
        update_statuses(resources.engine, read_heartbeats(client, 4, 60), rule)
    alerts.apply()
    assert alerts.column("title") == ["Job 1 is lost", "Job 1 is lost"]
    assert all("no heartbeat for" in content for content in alerts.column("content"))


def test_alerts_of_the_training_are_sent_by_their_level(
    alerts: Alerts, resources: Resources, sender: Sender
) -> None:
    """A rule takes `run.alert` from its least level on; the level of the call is kept."""
    alerts.begin('on = "alert"\nmin_level = "warning"')
    reported = [
        Alert(ts=now_ns(), title="low", level="info"),
        Alert(ts=now_ns(), title="loss\nspikes", text="at step 7", level="error"),
    ]
    sender.send(Metrics(alerts=reported))
    sender.send(Metrics(alerts=reported), seq=1)
    drain(resources, "metrics")
    alerts.apply()
    (alert,) = alerts.log
    assert (alert.title, alert.content, alert.level) == ("Job 1: loss spikes", "at step 7", "error")


def test_a_bound_is_reported_once_per_attempt(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """The first value beyond a bound is reported; NaN is not beyond one, infinity is."""
    alerts.begin('on = "metric"\nmetric = "loss"\nabove = 10', 'on = "metric"\nmetric = "val/f1"\nbelow = 0.5')
    for value in (1.0, math.nan, 12.5, 13.0):
        sender.send(metrics(now_ns(), 3, loss=value, **{"val/f1": 0.9}))
        drain(resources, "metrics")
        alerts.apply()
    sender.send(metrics(now_ns(), loss=math.inf), attempt=2, source="1-test")
    sender.send(metrics(now_ns(), None, **{"val/f1": 0.25}), attempt=2, source="1-test")
    drain(resources, "metrics")
    alerts.apply()
    alerts.apply()
    assert [(alert.rule, alert.title, alert.attempt) for alert in alerts.log] == [
        ("rule 1", "Job 1: loss is 12.5, above 10", 1),
        ("rule 1", "Job 1: loss is inf, above 10", 2),
        ("rule 2", "Job 1: val/f1 is 0.25, below 0.5", 2),
    ]
    assert alerts.log[0].content == "epoch 3, attempt 1"


def test_values_that_are_not_finite_are_reported(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """NaN and infinities of any metric, or of one, are reported by their names."""
    alerts.begin('on = "nan"', 'on = "nan"\nmetric = "acc"')
    sender.send(metrics(now_ns(), loss=1.0, other=2.0))
    sender.send(metrics(now_ns(), loss=math.nan, other=math.inf, third=1.0))
    sender.send(metrics(now_ns(), acc=-math.inf))
    drain(resources, "metrics")
    alerts.apply()
    assert sorted(alerts.column("title")) == [
        "Job 1: acc is -Infinity",
        "Job 1: loss is NaN, other is Infinity",
    ]


def test_no_row_is_read_without_a_rule_about_metrics(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """Jobs have a cursor only when a rule is about metrics, and rows before its beginning are not reported."""
    alerts.begin('on = "failed"')
    sender.send(metrics(now_ns(), loss=99.0))
    drain(resources, "metrics")
    alerts.apply()
    with resources.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT job_id FROM delivery_cursors").scalars().all() == [0]


def test_rules_report_some_jobs_only(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """`jobs` is a filter as of the list, for occurrences and for metrics."""
    only = "\njobs = 'tags.team = \"nlp\"'"
    alerts.begin(f'on = "failed"{only}', f'on = "metric"\nmetric = "loss"\nabove = 1{only}')
    for job, team in ((1, "nlp"), (5, "vision")):
        sender.send(Metrics(tags={"team": team}), job=job)
        sender.send(metrics(now_ns(), loss=2.0), job=job)
        drain(resources, "metrics", job)
        sender.send(completion("failed", ts=now_ns()), job=job)
        drain(resources, "completions", job)
    alerts.apply()
    assert [(alert.rule, alert.job_id) for alert in alerts.log] == [("rule 1", 1), ("rule 2", 1)]


def test_dead_letters_are_reported_once_an_hour(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """Invalid messages of a job are one alert per reason and hour, however many there are."""
    alerts.begin('on = "dead_letters"')
    for number in range(3):
        odd = {"v": 1, "job": 1, "attempt": 1, "source": "x", "seq": number + 1, "enc": "odd", "body": b"?"}
        sender.send_raw("logs", 1, odd)
        drain(resources)
        alerts.apply()
    assert len(alerts.log) <= 2  # the hour may end during the test
    assert alerts.log[0].title.startswith("Job 1: messages could not be stored (")


def test_a_trainer_that_makes_no_progress_is_reported_once_per_pause(
    alerts: Alerts, resources: Resources, sender: Sender, client: redis.Redis
) -> None:
    """A pause is reported when it exceeds after_s, and the next pause again."""
    alerts.begin('on = "no_progress"\nafter_s = 600')
    sender.send(logs("first"))
    drain(resources)
    for quiet_s in (30.0, 660.0, 720.0):
        _beat(client, quiet_s=quiet_s, rank=0, host="node7")
        alerts.apply()
    (alert,) = alerts.log
    assert (alert.title, alert.content) == ("Job 1 makes no progress for 11 min", "rank 0, host node7")
    alerts.execute("UPDATE alerts SET occurred_at = now() - interval '1 hour', occurrence = 'no_progress before'")
    alerts.apply()
    assert len(alerts.log) == 2


def test_a_full_spool_is_reported_once_per_attempt(
    alerts: Alerts, resources: Resources, sender: Sender, client: redis.Redis
) -> None:
    """The size of a spool is what the trainer's heartbeat states."""
    alerts.begin('on = "spool"\nabove_mb = 500')
    sender.send(logs("first"))
    drain(resources)
    for size in (10**6, 600 * 10**6, 700 * 10**6):
        _beat(client, spooled_bytes=size, host="node7")
        alerts.apply()
    assert alerts.column("title") == ["Job 1: the spool of a trainer has 600 MB, above 500"]


def test_the_past_is_not_reported(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """Rules report what is stored after they were first applied, and not what happened more than a day ago."""
    sender.send(metrics(now_ns(), loss=99.0))
    sender.send(completion("failed", ts=now_ns()))
    drain(resources, "metrics")
    drain(resources, "completions")
    alerts.begin('on = "failed"', 'on = "metric"\nmetric = "loss"\nabove = 1')
    assert alerts.log == []
    two_days_ns = 2 * 86_400 * 10**9
    sender.send(completion("failed", ts=now_ns() - two_days_ns), job=5)
    sender.send(metrics(now_ns() - two_days_ns, loss=99.0), job=5)
    drain(resources, "metrics", 5)
    drain(resources, "completions", 5)
    alerts.apply()
    assert alerts.log == []


def test_a_flood_is_cut_and_logged(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """Beyond at_most_per_h the alerts of a rule are in the log with the reason, and not sent."""
    alerts.begin('on = "failed"\nat_most_per_h = 2')
    for job in (1, 5, 9):
        sender.send(completion("failed", ts=now_ns()), job=job)
    drain(resources, "completions")
    alerts.apply()
    assert alerts.column("state") == ["waiting", "waiting", "suppressed"]
    assert alerts.log[2].last_error == "more than 2 within an hour"


def test_occurrences_without_rules_are_forgotten(alerts: Alerts, resources: Resources, sender: Sender) -> None:
    """Where no worker has rules, the rows of changes are removed after a week."""
    for job in (1, 5):
        sender.send(completion("failed", ts=now_ns()), job=job)
    drain(resources, "completions")
    alerts.execute("UPDATE alert_occurrences SET created_at = now() - interval '8 days' WHERE job_id = 1")
    forget_occurrences(resources.engine)
    with resources.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(alert_occurrences)).scalar_one() == 1
