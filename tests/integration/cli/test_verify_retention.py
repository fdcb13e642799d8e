"""`trainwire verify` after retention has removed old rows from Postgres: only real losses are reported."""

from __future__ import annotations

import json
import time

import pytest
from sqlalchemy import Connection, Engine, text

from tests.factories import SECOND_NS, Sender, completion, drain, logs
from tests.integration.cli.conftest import Trainwire
from tests.twins.loki import LokiTwin
from trainwire.stores.loki import lines
from trainwire.stores.loki.http import LokiHttp
from trainwire.stores.loki.lines import newest_lines
from trainwire.workers.operations.row_retention import RowPolicy, RowRetention
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.comparison import stored_ranges
from trainwire.workers.sinks.loki.entries import MAX_LINE_BYTES
from trainwire.workers.sinks.loki.sink import LokiSink

KEEPING = RowPolicy("training_logs", "last_log_seq", "removed_log_seq", 1, ("loki",))
VERIFY = ("verify", "42", "--sink", "loki")


def _deliver(engine: Engine, loki: LokiTwin) -> None:
    Delivery(engine, LogBacklog(engine, LokiSink.name), LokiSink(LokiHttp(loki.url)), slice_s=60).run()


def _run(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


@pytest.fixture
def delivered(resources: Resources, sender: Sender, loki: LokiTwin) -> Engine:
    """Store and deliver a finished job: a line that is too old for Loki, 5 of two days ago, 2 of now."""
    now = time.time_ns()
    two_days_ago = now - 2 * 24 * 3600 * SECOND_NS
    sender.send(logs("of last month", ts=now - 30 * 24 * 3600 * SECOND_NS), job=42)
    sender.send(logs("a", "b", "c", "x" * (MAX_LINE_BYTES + 1), "d", ts=two_days_ago), job=42)
    sender.send(logs("new", "newest", ts=now), job=42)
    drain(resources, "logs", 42)
    sender.send(completion(), job=42)
    drain(resources, "completions", 42)
    _deliver(resources.engine, loki)
    _run(resources.engine, "UPDATE training_logs SET created_at = now() - interval '2 days' WHERE seq <= 6")
    _run(resources.engine, "UPDATE training_jobs SET created_at = now() - interval '2 days'")
    return resources.engine


@pytest.fixture
def removed(delivered: Engine) -> Engine:
    """Remove old rows."""
    assert RowRetention(delivered, KEEPING).run(dry_run=False) == 6
    return delivered


@pytest.mark.usefixtures("removed")
def test_retention_is_no_loss(connected: Trainwire) -> None:
    """Removed rows are found in Loki, also far from the others, or among the dead letters; the exit code is 0."""
    shown = connected(*VERIFY)
    assert (shown.code, shown.out) == (
        0,
        "verified: 8 lines = 7 in Loki + 1 dead-lettered + 0 waiting + 0 missing; 0 twice, 0 unknown; "
        "2 in Postgres + 6 removed by retention + 0 lost\n",
    )
    document = json.loads(connected(*VERIFY, "--json").out)
    assert document["removed"] == {"count": 6, "ranges": [[1, 6]]}


def test_a_job_without_rows_is_still_accounted_for(connected: Trainwire, removed: Engine) -> None:
    """After the last row was removed, all rows of the job are counted in Loki, with any age."""
    _run(removed, "UPDATE training_logs SET created_at = now() - interval '2 days'")
    assert RowRetention(removed, KEEPING).run(dry_run=False) == 2
    _run(removed, "UPDATE training_jobs SET created_at = now() - interval '60 days'")
    shown = connected(*VERIFY)
    assert (shown.code, shown.out.partition("; ")[0]) == (
        0,
        "verified: 8 lines = 7 in Loki + 1 dead-lettered + 0 waiting + 0 missing",
    )
    assert shown.out.endswith("; 0 in Postgres + 8 removed by retention + 0 lost\n")


def test_a_loss_after_retention_is_found(connected: Trainwire, removed: Engine, alone: pytest.MonkeyPatch) -> None:
    """A row deleted by hand is lost from Postgres; rows missing in Loki are listed, removed ones too."""
    _run(removed, "DELETE FROM training_logs WHERE seq = 8")
    shown = connected(*VERIFY)
    assert shown.code == 1
    assert shown.out.splitlines()[0].endswith("1 in Postgres + 6 removed by retention + 1 lost")
    assert shown.out.splitlines()[1:] == ["lost from Postgres: 8"]
    with LokiTwin() as empty:
        alone.setenv("LOKI_URL", empty.url)
        shown = connected(*VERIFY)
    assert shown.code == 1
    assert "8 lines = 0 in Loki + 1 dead-lettered + 0 waiting + 7 missing" in shown.out
    assert shown.out.splitlines()[1:3] == ["missing in Loki: 2-8", "lost from Postgres: 8"]


def test_rows_that_go_meanwhile_are_no_loss(
    connected: Trainwire, delivered: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that retention removes during the comparison are not reported as lost."""

    def read_late(connection: Connection, job_id: int, last_seq: int) -> list[tuple[int, int]]:
        assert RowRetention(delivered, KEEPING).run(dry_run=False) == 6
        return stored_ranges(connection, job_id, last_seq)

    monkeypatch.setattr("trainwire.workers.sinks.loki.comparison.stored_ranges", read_late)
    shown = connected(*VERIFY)
    assert (shown.code, shown.out.partition("unknown; ")[2]) == (
        0,
        "2 in Postgres + 6 removed by retention + 0 lost\n",
    )


@pytest.mark.usefixtures("removed")
def test_removed_lines_are_read_from_loki(connected: Trainwire) -> None:
    """`logs --from loki` prints rows that Postgres no longer has."""
    shown = connected("logs", "42", "--from", "loki").out
    assert [line.split()[-1][:6] for line in shown.splitlines()] == ["a", "b", "c", "xxxxxx", "d", "new", "newest"]
    ours = connected("logs", "42")
    assert [line.split()[-1] for line in ours.out.splitlines()] == ["new", "newest"]
    assert "lines 1 to 6 of job 42 were removed by retention: `trainwire logs 42 --from loki`" in ours.err
    assert connected("logs", "42", "--limit", "2").err == ""


def test_removed_points_are_reported(connected: Trainwire, removed: Engine) -> None:
    """A job whose points retention has removed is distinguished from one without points."""
    assert connected("metrics", "42").out == (
        "job 42 logged no metrics: for a training that prints them see `trainwire run --metrics-regex` "
        "(docs/hooks.md)\n"
    )
    _run(removed, "UPDATE training_jobs SET last_metric_seq = 1200, removed_metric_seq = 1200")
    shown = connected("metrics", "42")
    assert (shown.out, shown.err) == (
        "",
        "trainwire: points 1 to 1,200 of job 42 were removed by retention\n",
    )


def test_the_newest_lines_of_a_job_without_rows(removed: Engine, loki: LokiTwin) -> None:
    """The page's query of Loki ends at the job's last lines, not at the present time."""
    http = LokiHttp(loki.url)
    with removed.begin() as connection:
        assert newest_lines(connection, http, 42, 2)[-1].text == "newest"
        connection.execute(text("DELETE FROM training_logs"))
        long_ago = json.dumps({"stdout": time.time_ns() - 36 * 3600 * SECOND_NS})
        connection.execute(text("UPDATE delivery_cursors SET state = :long_ago"), {"long_ago": long_ago})
        assert newest_lines(connection, http, 42, 2)[-1].text == "d"


@pytest.mark.parametrize(("most_bytes", "expected"), [(9, ["new", "newest"]), (8, ["newest"]), (1, ["newest"])])
def test_lines_of_loki_are_bounded_in_bytes(
    removed: Engine, loki: LokiTwin, monkeypatch: pytest.MonkeyPatch, most_bytes: int, expected: list[str]
) -> None:
    """The page gets the newest lines of Loki that fit into a response, and at least one."""
    monkeypatch.setattr(lines, "PAGE_BYTES", most_bytes)
    with removed.begin() as connection:
        found = newest_lines(connection, LokiHttp(loki.url), 42, 5)
    assert [line.text for line in found] == expected
