"""`trainwire logs --from loki` and `trainwire verify` with lines of real deliveries in Loki."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, delete, insert, update

from tests.integration.cli.conftest import Trainwire
from tests.twins.loki import Fault, LokiTwin
from trainwire.schemas.tables import delivery_cursors, training_jobs, training_logs
from trainwire.stores.loki.http import LokiHttp
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.entries import MAX_LINE_BYTES
from trainwire.workers.sinks.loki.sink import LokiSink

HOSTILE = "[red]x[/red] \x1b]0;x\x07\x1b[2Jend"
LONG = "x" * MAX_LINE_BYTES * 2 + "end"
LINES = [("stdout", HOSTILE), ("stderr", "50% done_"), ("stdout", LONG), ("stderr", "TRACEBACK:\n  File")]


@pytest.fixture
def delivered(engine: Engine, loki: LokiTwin) -> Engine:
    """Store a job whose fifth row is too old for Loki, and deliver it."""
    now = datetime.now(UTC).replace(microsecond=123_456)
    with engine.begin() as connection:
        connection.execute(insert(training_jobs), {"id": 42, "last_log_seq": 5})
        for seq, (log_type, content) in enumerate([*LINES, ("stdout", "of last month")], 1):
            logged_at = now + timedelta(milliseconds=seq) - timedelta(days=30 * (seq == 5))
            values = {"log_type": log_type, "content": content, "logged_at": logged_at, "logged_ns": 789}
            more = {
                "attempt": 2 if seq == 2 else 1,
                "rank": 3 if seq == 2 else None,
                "level": "WARN",
                "source": "s",
            }
            connection.execute(insert(training_logs), {"job_id": 42, "seq": seq, **values, **more})
    deliver(engine, loki)
    return engine


def deliver(engine: Engine, loki: LokiTwin) -> None:
    """Deliver waiting rows."""
    Delivery(engine, LogBacklog(engine, LokiSink.name), LokiSink(LokiHttp(loki.url)), slice_s=60).run()


def _push(loki: LokiTwin, *lines: tuple[str, dict[str, str]], **labels: str) -> None:
    """Push lines without trainwire."""
    stream = {"job": "training", "job_id": "42", "log_type": "stdout", **labels}
    values = [[str(time.time_ns()), text, metadata] for text, metadata in lines]
    pushed = {"streams": [{"stream": stream, "values": values}]}
    assert LokiHttp(loki.url).post_json("/loki/api/v1/push", msgspec.json.encode(pushed)).status == 204


@pytest.mark.usefixtures("delivered")
def test_logs_come_back_as_they_are_in_postgres(connected: Trainwire) -> None:
    """Both sources print the same lines for any filter, with split lines joined."""
    for options in (
        ["--log-type", "stderr"],
        ["--grep", "xend"],
        ["--grep", "50% d"],
        ["--grep", "5%_"],
        ["--attempt", "2"],
        ["--attempt", "1", "--log-type", "stdout", "--limit", "0"],
    ):
        shown, wanted = connected("logs", "42", "--from", "loki", *options), connected("logs", "42", *options)
        assert (shown.code, shown.out) == (0, wanted.out), options
    assert "stderr 3 WARN 50% done_" in connected("logs", "42", "--from", "loki").out
    newest = connected("logs", "42", "--from", "loki", "--limit", "2").out
    assert [line[13:24] for line in newest.splitlines()] == ["stdout WARN", "stderr WARN", ""]
    assert "\x1b" not in connected("logs", "42", "--from", "loki").out


def test_a_job_whose_clock_is_ahead_is_verified(connected: Trainwire, engine: Engine, loki: LokiTwin) -> None:
    """Lines minutes and centuries ahead count as delivered, and have the trainer's time in `logs --from loki`."""
    now = datetime.now(UTC).replace(microsecond=123_456)
    with engine.begin() as connection:
        connection.execute(insert(training_jobs), {"id": 42, "last_log_seq": 300})
        for seq in range(1, 301):
            ahead = timedelta(minutes=20) if seq <= 200 else timedelta(days=365 * 200)
            more = {"log_type": "stdout", "content": f"line {seq}", "attempt": 1, "source": "s", "logged_ns": 7}
            logged_at = now + ahead + timedelta(milliseconds=seq)
            connection.execute(insert(training_logs), {"job_id": 42, "seq": seq, "logged_at": logged_at, **more})
    deliver(engine, loki)
    deliver(engine, loki)
    verified = connected("verify", "42", "--sink", "loki")
    assert (verified.code, verified.out.partition(";")[0]) == (
        0,
        "verified: 300 lines = 300 in Loki + 0 dead-lettered + 0 waiting + 0 missing",
    )
    options = ("--limit", "0", "--json")
    assert connected("logs", "42", "--from", "loki", *options).out == connected("logs", "42", *options).out


def test_logs_of_a_job_that_postgres_forgot(connected: Trainwire, delivered: Engine) -> None:
    """Without rows the last seven days are queried; an unknown job is an error."""
    with delivered.begin() as connection:
        connection.execute(delete(training_logs))
        connection.execute(delete(training_jobs))
    assert "50% done_" in connected("logs", "42", "--from", "loki").out
    unknown = connected("logs", "7", "--from", "loki")
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.startswith("trainwire: no job 7 in the database, and no such line")


@pytest.mark.usefixtures("delivered")
def test_a_delivered_job_is_verified(connected: Trainwire) -> None:
    """The delivered lines are those of Postgres, the refused row counted; exit code 0."""
    shown = connected("verify", "42", "--sink", "loki")
    assert (shown.code, shown.out) == (
        0,
        "verified: 5 lines = 4 in Loki + 1 dead-lettered + 0 waiting + 0 missing; "
        "0 twice, 0 unknown; 5 in Postgres + 0 removed by retention + 0 lost\n",
    )
    document = json.loads(connected("verify", "42", "--sink", "loki", "--json").out)
    assert (document["verified"], document["in_loki"], document["dead_lettered"]) == (True, 4, 1)


def test_every_difference_is_named(connected: Trainwire, delivered: Engine, loki: LokiTwin) -> None:
    """Missing, repeated and unknown lines are listed by number, waiting ones only counted; the exit code is 1."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {"attempt": 1, "source": "s", "log_type": "stdout", "logged_ns": 0, "logged_at": now}
    with delivered.begin() as connection:
        for seq in range(6, 10):
            connection.execute(insert(training_logs), {"job_id": 42, "seq": seq, "content": "new", **values})
        connection.execute(update(training_jobs).values(last_log_seq=9))
        connection.execute(update(delivery_cursors).values(confirmed_seq=8))
    again = {"seq": "4", "attempt": "1"}
    _push(loki, ("TRACEBACK:\n  File", again), log_type="stderr", late="2026-01-02T03")
    _push(loki, ("a stranger's", {"seq": "77"}), ("a stranger's", {}))
    shown = connected("verify", "42", "--sink", "loki")
    head, *named = shown.out.splitlines()
    assert (shown.code, head) == (
        1,
        "differs: 9 lines = 4 in Loki + 1 dead-lettered + 1 waiting + 3 missing; "
        "1 twice, 2 unknown; 9 in Postgres + 0 removed by retention + 0 lost",
    )
    assert named == [
        "missing in Loki: 6-8",
        "twice in Loki: 4",
        "in Loki, unknown to Postgres: 77",
        "in Loki without a number: 1",
        "This Loki finds a line that came over 2h41m0s late half an hour after its delivery: "
        "where those missing may be such, verify again before a replay",
    ]
    document = json.loads(connected("verify", "42", "--sink", "loki", "--json").out)
    assert (document["verified"], document["missing"]) == (False, {"count": 3, "ranges": [[6, 8]]})
    assert document["hidden_after"] == "2h41m0s"


def test_a_replay_repairs_a_loki_that_lost_everything(
    connected: Trainwire, alone: pytest.MonkeyPatch, delivered: Engine
) -> None:
    """After a replay and a delivery an empty Loki has every line once, and the refused row its dead letter."""
    with LokiTwin() as empty:
        alone.setenv("LOKI_URL", empty.url)
        assert "missing in Loki: 1-4\n" in connected("verify", "42", "--sink", "loki").out
        sent = connected("replay", "42", "--sink", "loki")
        assert sent.out.startswith("5 rows of job 42, from 1 on, will be sent to loki again, 1 of them dead")
        assert "0 dead-lettered + 5 waiting + 0 missing" in connected("verify", "42", "--sink", "loki").out
        deliver(delivered, empty)
        shown = connected("verify", "42", "--sink", "loki")
        assert shown.out.startswith("verified: 5 lines = 4 in Loki + 1 dead-lettered + 0 waiting")
        assert "all 5 lines delivered, 1 of them dead-lettered" in connected("status", "42").out


@pytest.mark.usefixtures("delivered")
def test_a_loki_that_does_not_answer_is_named(connected: Trainwire, loki: LokiTwin) -> None:
    """Refused connections and refused queries are one error with the address, without other output."""
    loki.faults.append(Fault(status=503, body="too busy", on="query"))
    busy = connected("verify", "42", "--sink", "loki")
    assert (busy.code, busy.out) == (1, "")
    assert busy.err == f"trainwire: Loki answered 503: too busy; LOKI_URL is {loki.url}\n"
    loki.faults.append(Fault(status=200, body="<html>", on="query"))
    assert f"the server at {loki.url} is not Loki" in connected("logs", "42", "--from", "loki").err
    loki.stop()
    for command in (["verify", "42", "--sink", "loki"], ["logs", "42", "--from", "loki"]):
        shown = connected(*command)
        assert (shown.code, shown.out) == (1, "")
        assert shown.err.startswith(f"trainwire: Loki at {loki.url.removeprefix('http://')} does not answer")


@pytest.mark.usefixtures("delivered")
def test_unsupported_options_of_logs_are_refused(connected: Trainwire) -> None:
    """--follow needs Postgres; an unknown store is an error that lists the known ones."""
    assert "omit --from loki" in connected("logs", "42", "--from", "loki", "-f").err
    for other in ("elastic", "mlflow"):
        refused = connected("logs", "42", "--from", other).err
        assert (
            refused == f"trainwire: --from {other}: logs are read from Postgres, or with --from loki from Loki\n"
        )
