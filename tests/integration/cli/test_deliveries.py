"""`trainwire deliveries`, `retry` and `replay` on rows, cursors and outages written by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, insert, text

from tests.factories import one, rows
from tests.integration.cli.conftest import Trainwire
from trainwire.cli.commands.operations.deliveries import Replayed, replay_rows
from trainwire.schemas.tables import dead_letters, delivery_cursors, sink_states, training_jobs, training_logs
from trainwire.stack.errors import Problem
from trainwire.workers.sinks.cursors import lease_jobs

HOSTILE = "[red]x[/red] \x1b]0;x\x07\x1b[2Jend"
SHOWN = "[red]x[/red] end"


def _add(engine: Engine, table: Table, *values: dict[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(table), list(values))


def _cursor(job_id: int, confirmed_seq: int, **more: Any) -> dict[str, Any]:
    moved = {"moved_at": datetime.now(UTC), "attempts": 0, "last_error": None, "dead_lettered": 0}
    return {"sink": "loki", "job_id": job_id, "confirmed_seq": confirmed_seq, **moved, **more}


@pytest.fixture
def jobs(engine: Engine) -> Engine:
    """Store job 1 (delivered, 1 dead letter), job 2 (2 of 5 rows behind for an hour), job 3 (never delivered)."""
    now = datetime.now(UTC)
    _add(
        engine,
        training_jobs,
        *({"id": job, "last_log_seq": last} for job, last in ((1, 4), (2, 5), (3, 3), (4, 0))),
    )
    for job, last in ((1, 4), (2, 5), (3, 3)):
        created_at = now - timedelta(hours=job == 2)
        more = {"attempt": 1, "logged_ns": 0, "source": "s", "log_type": "stdout", "content": "line"}
        lines = [
            {"job_id": job, "seq": seq, "logged_at": now, "created_at": created_at} for seq in range(1, last + 1)
        ]
        _add(engine, training_logs, *(line | more for line in lines))
    _add(
        engine,
        delivery_cursors,
        _cursor(1, 4, dead_lettered=1),
        _cursor(2, 3, attempts=7, last_error=HOSTILE),
    )
    letter = {"stream": "sink:loki", "entry_id": "1-2", "kind": "logs", "job_id": 1, "seq": 2, "raw_sha256": b"x"}
    _add(engine, dead_letters, letter | {"reason": "too-old", "detail": "", "raw": b"x"})
    return engine


def _down(engine: Engine) -> None:
    now = datetime.now(UTC)
    state = {"down_since": now - timedelta(minutes=5), "next_probe_at": now + timedelta(hours=1)}
    _add(engine, sink_states, {"sink": "loki", "attempts": 7, "last_error": HOSTILE, **state})


@pytest.mark.usefixtures("jobs")
def test_lag_is_shown_per_job(connected: Trainwire) -> None:
    """Jobs that are behind come first, the longest waiting before the others; the rest is summarized in a line."""
    shown = connected("deliveries")
    head, columns, second, third, total = shown.out.splitlines()
    assert (shown.code, head) == (0, "loki: answers")
    assert columns.split()[:3] == ["job", "rows", "oldest"]
    assert second.split()[:7] == ["2", "2", "1", "h", "0", "min", "3"]
    assert second.endswith(f"7              0  {SHOWN}")
    assert third.split()[:2] == ["3", "3"]
    assert total == "1 job fully delivered: 4 rows, 1 of them dead-lettered"
    assert "\x1b" not in shown.out
    limited = connected("deliveries", "--limit", "1").out
    assert "and 1 more job behind, 5 rows in all" in limited


@pytest.mark.usefixtures("jobs")
def test_lag_is_a_document(connected: Trainwire) -> None:
    """`--json` has the sinks with their health, sums and jobs."""
    (sink,) = json.loads(connected("deliveries", "--json").out)
    assert (sink["sink"], sink["answers"]) == ("loki", True)
    assert (sink["jobs_behind"], sink["rows_behind"]) == (2, 5)
    assert (sink["jobs_delivered"], sink["rows_delivered"], sink["dead_lettered"]) == (1, 4, 1)
    first, second = sink["jobs"]
    assert (first["job_id"], first["rows_behind"], first["confirmed_seq"], first["attempts"]) == (2, 2, 3, 7)
    assert first["last_error"] == HOSTILE
    assert 3600 <= first["oldest_age_s"] < 3700
    assert (second["job_id"], second["rows_behind"], second["confirmed_seq"]) == (3, 3, 0)


def test_an_outage_is_shown_and_ended(connected: Trainwire, jobs: Engine) -> None:
    """`deliveries` shows since when a sink does not answer; `retry` makes the next attempt due."""
    _down(jobs)
    shown = connected("deliveries").out.splitlines()[0]
    assert shown.startswith(f"loki: {SHOWN}, since ")
    assert shown.endswith(" (7 attempts)")
    assert connected("deliveries", "retry", "--sink", "loki").out.endswith("the next attempt is now\n")
    with jobs.connect() as connection:
        assert connection.execute(text("SELECT next_probe_at <= now() FROM sink_states")).scalar_one()
    assert "next attempt now" in connected("deliveries").out


def test_without_an_outage_there_is_nothing_to_retry(connected: Trainwire, engine: Engine) -> None:
    """For a sink that answers, or was never used, this is printed, and nothing is written."""
    assert connected("deliveries").out.startswith("loki: nothing has been sent to it yet\n0 jobs fully")
    assert connected("deliveries", "retry").out == "loki is not known to be down: there is nothing to retry\n"
    assert rows(engine, sink_states, "sink", order=["sink"]) == []


def test_a_job_that_waits_alone_is_shown_and_tried_again(connected: Trainwire, jobs: Engine) -> None:
    """The commands show the reason and the next attempt of a delayed job; `retry` makes it due."""
    later = datetime.now(UTC) + timedelta(days=2)
    with jobs.begin() as connection:
        wait = text("UPDATE delivery_cursors SET attempts = 7, last_error = 'no', next_attempt_at = :later")
        connection.execute(wait, {"later": later})
    shown = connected("deliveries").out
    assert shown.count("no, next attempt ") == 2
    assert shown.startswith("loki: answers")
    assert "loki            2 lines behind; no, next attempt " in connected("status", "2").out
    document = json.loads(connected("deliveries", "--json").out)
    assert datetime.fromisoformat(document[0]["jobs"][0]["next_attempt_at"]) == later
    assert connected("deliveries", "retry", "--sink", "loki").out == (
        "loki answers, and has failed 2 jobs: the next attempt is now\n"
    )
    assert "next attempt" not in connected("deliveries").out


@pytest.mark.usefixtures("jobs")
def test_status_has_a_line_for_each_sink(connected: Trainwire, jobs: Engine) -> None:
    """`status` shows the delivery to Loki with its delays, and no sink that was never used."""
    assert "loki            all 4 lines delivered, 1 of them dead-lettered\n" in connected("status", "1").out
    assert f"loki            2 lines behind; last error: {SHOWN}\n" in connected("status", "2").out
    assert "loki" not in connected("status", "3").out
    _down(jobs)
    shown = connected("status", "3").out
    assert f"loki            3 lines behind; {SHOWN}, since " in shown
    assert "\x1b" not in shown
    assert "loki" not in connected("status", "4").out
    document = json.loads(connected("status", "2", "--json").out)["deliveries"]["loki"]
    assert (document["rows_behind"], document["sink"]["answers"]) == (2, False)


@pytest.mark.usefixtures("jobs")
def test_replay_moves_the_cursor_back(connected: Trainwire, jobs: Engine) -> None:
    """Rows are delivered again, also refused ones, whose dead letters are removed; then nothing is left to do."""
    shown = connected("replay", "1", "--sink", "loki", "--from", "2")
    assert shown.out == (
        "3 rows of job 1, from 2 on, will be sent to loki again, 1 of them dead letters until now\n"
    )
    cursor = one(jobs, delivery_cursors, job_id=1)
    assert (cursor["confirmed_seq"], cursor["dead_lettered"]) == (1, 0)
    assert rows(jobs, dead_letters, "id", order=["id"]) == []
    assert connected("replay", "1", "--sink", "loki", "--from", "2").out.startswith("nothing to send again: loki")
    assert connected("replay", "1", "--sink", "loki").out.startswith("1 row of job 1, from 1 on")


@pytest.mark.usefixtures("jobs")
def test_replay_never_moves_a_cursor_forward(connected: Trainwire, jobs: Engine) -> None:
    """Rows that were not delivered are not skipped by a number beyond the cursor."""
    assert connected("replay", "2", "--sink", "loki", "--from", "5").out.startswith("nothing to send again")
    assert one(jobs, delivery_cursors, job_id=2)["confirmed_seq"] == 3
    assert connected("replay", "3", "--sink", "loki").out.startswith("nothing to send again: loki has none")


@pytest.mark.usefixtures("jobs")
def test_an_impossible_replay_is_refused(connected: Trainwire) -> None:
    """An unknown job, a number beyond the last row and an unknown sink are errors."""
    assert connected("replay", "7", "--sink", "loki").err.startswith("trainwire: no job 7 in the database")
    beyond = connected("replay", "1", "--sink", "loki", "--from", "5")
    assert (beyond.code, "job 1 has the rows 1 to 4, and none from 5 on" in beyond.err) == (1, True)
    assert "job 4 has no log rows yet" in connected("replay", "4", "--sink", "loki").err
    for command in (["replay", "1"], ["verify", "1"], ["deliveries", "retry"]):
        unknown = connected(*command, "--sink", "elastic")
        assert unknown.code == 1
        assert unknown.err == "trainwire: no such sink 'elastic': choose loki, mlflow or jsonl\n"


def test_replay_does_not_cross_a_delivery(jobs: Engine) -> None:
    """A replay is refused while a delivery has the lease of the job, because it would overwrite the cursor."""

    def replayed(connection: Connection) -> Replayed:
        return replay_rows(connection, "loki", 1, 1, timeout_s=1)

    with jobs.begin() as leases:
        assert lease_jobs(leases, "loki", [1]) == [1]
        with jobs.connect() as connection, pytest.raises(Problem, match="more than 1 s: nothing was changed"):
            replayed(connection)
    assert one(jobs, delivery_cursors, job_id=1)["confirmed_seq"] == 4
    with jobs.begin() as connection:
        assert replayed(connection) == Replayed(rows=4, dead_letters=1)
