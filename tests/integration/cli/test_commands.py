"""The commands that read, on rows written by hand: values without a JSON form, and hostile text."""

from __future__ import annotations

import json
import math
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, insert, text, update

from tests.integration.cli.conftest import Trainwire
from trainwire.cli.formats import shown_time
from trainwire.schemas import keys as routes
from trainwire.schemas.tables import (
    source_positions,
    training_checkpoints,
    training_jobs,
    training_logs,
    training_metrics,
)

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "[red]x[/red] \x1b]0;x\x07\x1b[2Jend"
SHOWN = "[red]x[/red] end"


def _row(seq: int, **more: Any) -> dict[str, Any]:
    return {"job_id": 42, "seq": seq, "attempt": 1, "source": "0-ab12cd34", "logged_at": AT, **more}


def _log(seq: int, content: str, **more: Any) -> dict[str, Any]:
    return _row(seq, logged_ns=0, log_type="stdout", content=content) | more


def _position(kind: str, last_seq: int, **more: Any) -> dict[str, Any]:
    return {
        "job_id": 42,
        "source": "0-ab12cd34",
        "kind": kind,
        "attempt": 1,
        "last_seq": last_seq,
        "missing": [],
        "produced": last_seq,
        **more,
    }


def _add(engine: Engine, table: Any, *rows: dict[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(table), list(rows))


@pytest.fixture
def job(engine: Engine) -> int:
    """Store a finished job with two lines, two points and a checkpoint, all with hostile values."""
    _add(
        engine,
        training_jobs,
        {
            "id": 42,
            "name": HOSTILE,
            "status": "completed",
            "started_at": AT,
            "completed_at": AT,
            "current_epoch": 2,
            "total_epochs": 10,
            "progress_percent": 20.0,
            "final_accuracy": math.nan,
            "final_metrics": {"loss": "NaN"},
            "exit_code": 0,
            "error_message": HOSTILE,
            "best_checkpoint_path": HOSTILE,
            "last_log_seq": 2,
            "last_metric_seq": 2,
            "last_checkpoint_seq": 1,
        },
    )
    _add(engine, training_logs, _log(1, HOSTILE), _log(2, "50% done_", log_type="stderr", attempt=2))
    points = [(math.nan, None, None), (0.0, math.inf, {"f1": "-Infinity", HOSTILE: 1.5})]
    for seq, (loss, accuracy, extra) in enumerate(points, start=1):
        more = {"epoch": seq, "step": seq * 10, "extra_metrics": extra}
        _add(engine, training_metrics, _row(seq, loss=loss, accuracy=accuracy, **more))
    _add(engine, training_checkpoints, _row(1, kind="best", uri="out/best.pt", is_best=True))
    _add(
        engine,
        source_positions,
        _position("logs", 2),
        _position("metrics", 2),
        _position("checkpoints", 1),
        _position("completions", 1),
    )
    return 42


@pytest.mark.usefixtures("job")
def test_status_shows_the_job_and_the_sum(connected: Trainwire) -> None:
    """`status` names state, progress, newest values, rows of each kind and the completeness line."""
    shown = connected("status", "42")
    assert (shown.code, shown.err) == (0, "")
    for wanted in (
        f"42 {SHOWN}",
        "completed, attempt 1",
        "epoch 2 of 10, 20 %",
        "loss 0 · accuracy Infinity",
        "f1 -Infinity",
        "out/best.pt",
        "2 log lines · 2 metric points · 1 checkpoint\n",
        "complete: 6 messages produced = 6 stored + 0 dead-lettered + 0 missing + 0 dropped",
    ):
        assert wanted in shown.out
    assert "\x1b" not in shown.out


@pytest.mark.usefixtures("job")
def test_status_json_is_one_document(connected: Trainwire) -> None:
    """`status --json` has ISO times, named non-finite numbers and the sum in parts."""
    document = json.loads(connected("status", "42", "--json").out)
    assert document["id"] == 42
    assert document["started_at"] == "2026-01-02T03:04:05+00:00"
    assert document["final_accuracy"] == "NaN"
    assert document["rows"] == {"logs": 2, "metrics": 2, "checkpoints": 1}
    assert document["last_metrics"]["accuracy"] == "Infinity"
    assert document["completeness"]["state"] == "complete"
    assert document["completeness"]["produced"] == 6


@pytest.mark.parametrize(
    ("epoch", "total", "percent", "shown"),
    [
        (1, 3, 100 / 3, "epoch 1 of 3, 33.3333 %"),
        (None, None, 1e308, "1e+308 %"),
        (-3, -3, 100.0, "epoch -3 of -3"),
        (4, 0, 50.0, "epoch 4 of 0"),
    ],
)
def test_progress_is_short_and_no_lie(
    connected: Trainwire,
    engine: Engine,
    job: int,
    *,
    epoch: int | None,
    total: int | None,
    percent: float,
    shown: str,
) -> None:
    """A percentage has few digits; without a number of epochs there is none."""
    values = {"current_epoch": epoch, "total_epochs": total, "progress_percent": percent}
    with engine.begin() as connection:
        connection.execute(update(training_jobs).values(**values))
    assert f"progress        {shown}\n" in connected("status", str(job)).out


def test_status_names_the_gaps(connected: Trainwire, engine: Engine, job: int) -> None:
    """Missing numbers are in the completeness line and in the document."""
    with engine.begin() as connection:
        changed = update(source_positions).where(source_positions.c.kind == "logs")
        connection.execute(changed.values(last_seq=12, missing=[[7, 7], [9, 10]], produced=13))
    shown = connected("status", str(job)).out
    assert "incomplete: 17 messages produced = 13 stored" in shown
    assert "missing: logs of 0-ab12cd34: 7, 9-10, 13" in shown
    gaps = json.loads(connected("status", str(job), "--json").out)["completeness"]["gaps"]
    assert gaps == [{"source": "0-ab12cd34", "kind": "logs", "ranges": [[7, 7], [9, 10], [13, 13]]}]


@pytest.mark.usefixtures("job")
def test_status_warns_of_a_stopped_drain(connected: Trainwire, client: redis.Redis) -> None:
    """A halted stream is named with the reason."""
    client.hset(routes.HALTED_KEY, "ingest:{2}:logs", "95 of 100 entries invalid")
    shown = connected("status", "42")
    assert "the drain of ingest:{2}:logs has stopped: 95 of 100 entries invalid" in shown.err


@pytest.mark.usefixtures("job")
def test_a_lost_job_shows_since_when_and_why(connected: Trainwire, engine: Engine) -> None:
    """`status` and `jobs` name the time, `status` the reason, which is data from a trainer's machine."""
    with engine.begin() as connection:
        lost = {"status": "lost", "quiet_since": AT, "status_reason": f"no heartbeat of {HOSTILE}"}
        connection.execute(update(training_jobs).values(**lost))
    since = f"lost since {shown_time(AT)}"
    shown = connected("status", "42").out
    assert f"status          {since}, attempt 1\n" in shown
    assert f"why             no heartbeat of {SHOWN}\n" in shown
    listed = connected("jobs", "--status", "lost").out
    assert since in listed
    assert "\x1b" not in shown + listed
    assert json.loads(connected("status", "42", "--json").out)["quiet_since"] == AT.isoformat()


@pytest.mark.usefixtures("job")
def test_status_needs_no_redis(connected: Trainwire, alone: pytest.MonkeyPatch) -> None:
    """`status` reads rows from Postgres while Redis does not answer."""
    alone.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    shown = connected("status", "42")
    assert shown.code == 0
    assert "complete: 6" in shown.out


def test_an_unknown_job_is_reported(connected: Trainwire) -> None:
    """A job without any stored message is one error and exit code 1."""
    for command in ("status", "logs", "metrics"):
        shown = connected(command, "7")
        assert (shown.code, shown.out) == (1, "")
        assert shown.err.startswith("trainwire: no job 7 in the database")


@pytest.mark.usefixtures("job")
def test_jobs_lists_and_filters(connected: Trainwire) -> None:
    """`jobs` shows the newest jobs, filtered by status if requested, as a table or as JSON."""
    shown = connected("jobs").out
    assert SHOWN in shown
    assert "\x1b" not in shown
    assert [job["id"] for job in json.loads(connected("jobs", "--json").out)] == [42]
    assert json.loads(connected("jobs", "--status", "failed", "--json").out) == []
    assert connected("jobs", "--status", "done").err.startswith("trainwire: no such status 'done': choose")


@pytest.mark.usefixtures("job")
def test_metrics_keep_zero_and_nan(connected: Trainwire) -> None:
    """0.0 and NaN are values; a missing value is absent."""
    rows = json.loads(connected("metrics", "42", "--json").out)
    assert [row["values"] for row in rows] == [
        {"loss": "NaN"},
        {"loss": 0.0, "accuracy": "Infinity", "f1": "-Infinity", HOSTILE: 1.5},
    ]
    shown = connected("metrics", "42").out
    assert SHOWN in shown
    assert "\x1b" not in shown
    assert [row["seq"] for row in json.loads(connected("metrics", "42", "--json", "--limit", "1").out)] == [2]


@pytest.mark.usefixtures("job")
def test_logs_filters(connected: Trainwire) -> None:
    """Lines are chosen by stream, text (taken literally), attempt and number."""
    assert f"stdout {SHOWN}\n" in connected("logs", "42").out
    assert "done_" not in connected("logs", "42", "--log-type", "stdout").out
    assert connected("logs", "42", "--grep", "50% d").out.endswith("50% done_\n")
    assert connected("logs", "42", "--grep", "5%_").out == ""
    assert connected("logs", "42", "--limit", "1").out.count("\n") == 1
    assert "done_" in connected("logs", "42", "--attempt", "2").out
    assert connected("logs", "42", "--log-type", "both").code == 1


def test_logs_follow_until_all_has_arrived(connected: Trainwire, engine: Engine, job: int) -> None:
    """`logs -f` prints new lines, and ends when the job has finished and no more rows are expected."""
    with engine.begin() as connection:
        connection.execute(update(training_jobs).values(status="running"))

    def finish() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _is_following(engine):
            time.sleep(0.02)
        _add(engine, training_logs, *(_log(seq, f"late {seq}") for seq in range(3, 6)))
        with engine.begin() as connection:
            connection.execute(update(training_jobs).values(status="completed", last_log_seq=5))

    finishing = threading.Thread(target=finish)
    finishing.start()
    shown = connected("logs", str(job), "-f", "--limit", "1")
    finishing.join()
    assert [line[13:] for line in shown.out.splitlines()] == [
        "stderr 50% done_",
        *(f"stdout late {seq}" for seq in range(3, 6)),
    ]
    assert shown.code == 0


@pytest.mark.parametrize("produced", [2, 2**63 - 1])
def test_logs_follow_ends_without_missing_messages(
    connected: Trainwire, alone: pytest.MonkeyPatch, engine: Engine, job: int, produced: int
) -> None:
    """`logs -f` of a finished job without new rows ends, and warns if messages are missing."""
    alone.setattr("trainwire.cli.commands.jobs.logs.QUIET_S", 0.0)
    with engine.begin() as connection:
        logs = update(source_positions).where(source_positions.c.kind == "logs")
        connection.execute(logs.values(produced=produced))
    shown = connected("logs", str(job), "-f")
    assert shown.code == 0
    assert shown.out.endswith("50% done_\n")
    assert ("there was no new row" in shown.err) == (produced > 2)


def test_a_folder_that_is_named_outranks_the_environment(connected: Trainwire, tmp_path: Path) -> None:
    """--data-dir without a stack is an error; DATABASE_URL and REDIS_URL are not used instead."""
    shown = connected("jobs", "--data-dir", str(tmp_path))
    assert (shown.code, shown.out) == (1, "")
    assert shown.err.startswith(f"trainwire: no trainwire is running in {tmp_path}")


def _is_following(engine: Engine) -> bool:
    with engine.connect() as connection:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'trainwire-cli' "
            "AND query LIKE '%training_logs.seq > %'"
        )
        return bool(connection.execute(text(query)).scalar_one())
