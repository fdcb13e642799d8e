"""Logs over HTTP: pages, filters, bounded search, jumps in time, downloads, and lines from Loki."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import count
from urllib.parse import quote

import msgspec
import pytest
from sqlalchemy import event, select, text

from tests.factories import NOW_NS, SECOND_NS, Sender, drain, logs
from tests.gateway_server import GatewayServer, gateway_settings
from tests.twins.loki import LokiTwin
from trainwire.gateway.documents.row_types import LogPage
from trainwire.gateway.feed.feed_queries import read_newest, read_rows
from trainwire.schemas.tables import training_logs
from trainwire.schemas.wire.messages import Logs
from trainwire.stores.rows import log_pages
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.sink import LokiSink

HOSTILE = "<img src=x onerror=alert(1)> \x1b[31m ␀ 100% _a' OR 1=1; ☃ \U0001f4a5"
_jobs = count(6_000)


@pytest.fixture
def job(gateway: GatewayServer, resources: Resources, sender: Sender) -> int:  # noqa: ARG001 - the stores first
    """A job with lines 1 to 10, every third of them an error on stderr, a second apart."""
    number = next(_jobs)
    for line in range(1, 11):
        is_error = line % 3 == 0
        body = Logs(
            log_type="stderr" if is_error else "stdout",
            lines=[f"Line {line}"],
            ts=[NOW_NS + line * SECOND_NS],
            levels=["ERROR" if is_error else None],
            rank=1 if is_error else None,
        )
        sender.send(body, job=number)
    drain(resources, job=number)
    return number


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ("", list(range(1, 11))),
        ("limit=3", [8, 9, 10]),
        ("limit=3&before=8", [5, 6, 7]),
        ("limit=3&after=3", [4, 5, 6]),
        ("after=10", []),
        ("before=1", []),
        ("before=0", []),
        ("log_type=stderr", [3, 6, 9]),
        ("level=ERROR&limit=2", [6, 9]),
        ("rank=1&after=3&limit=1", [6]),
        ("attempt=1&before=3", [1, 2]),
        ("attempt=2", []),
        ("search=LINE 1", [1, 10]),
        ("search=%25", []),
        ("search=", list(range(1, 11))),
    ],
)
def test_pages_and_filters(gateway: GatewayServer, job: int, query: str, seqs: list[int]) -> None:
    """A page is oldest to newest: the newest lines, or those after or before a line, that match all filters."""
    page = gateway.get(f"/jobs/{job}/logs?{query}")
    msgspec.convert(page, LogPage, strict=True)
    assert [line["seq"] for line in page["items"]] == seqs
    assert (page["first_seq"], page["last_seq"]) == ((seqs[0], seqs[-1]) if seqs else (None, None))
    assert (page["total"], page["scanned"]) == (10, None)


def test_a_line_is_returned_unchanged(
    gateway: GatewayServer, resources: Resources, sender: Sender, job: int
) -> None:
    """Text is returned unchanged, and times to the nanosecond."""
    sender.send(logs(HOSTILE), job=job, source="hostile")
    drain(resources, job=job)
    (line,) = gateway.get(f"/jobs/{job}/logs?limit=1")["items"]
    assert line == {"seq": 11, "attempt": 1, "ts": NOW_NS, "log_type": "stdout", "text": HOSTILE}


def test_a_time_leads_to_the_first_line_from_then_on(gateway: GatewayServer, job: int) -> None:
    """`at` returns the first line of that time or later, and the following ones."""
    at = "2026-09-21T14:13:{:02d}.5Z"  # NOW_NS is 14:13:20.12
    found = gateway.get(f"/jobs/{job}/logs", params={"at": at.format(24), "limit": 2})
    assert [line["seq"] for line in found["items"]] == [5, 6]
    assert gateway.get(f"/jobs/{job}/logs?at=2027-01-01T00:00:00")["items"] == []
    assert gateway.get(f"/jobs/{job}/logs?at=0001-01-01T00:00:00Z&limit=1")["first_seq"] == 1


def test_a_time_is_found_in_a_long_log_with_gaps(resources: Resources) -> None:
    """The line of a time is found with few queries, also where retention and deletions have removed lines."""
    job, last = next(_jobs), 100_000
    with resources.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO training_logs (job_id, seq, logged_at, attempt, logged_ns, source, log_type, content)"
                " SELECT :job, n, to_timestamp(n / 3), 1, 0, 's', 'stdout', '' "
                "FROM generate_series(1000, 99990) AS n WHERE n NOT BETWEEN 4500 AND 70000 OR n % 500 = 0"
            ),
            {"job": job},
        )
    statements: list[str] = []
    with resources.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        found = select(training_logs.c.seq, training_logs.c.logged_at).where(training_logs.c.job_id == job)
        rows = connection.execute(found.order_by(training_logs.c.seq)).all()
        for second in (0, 333, 334, 1490, 1500, 1501, 20_000, 23_333, 30_000, 33_330, 33_331):
            at = datetime.fromtimestamp(second, UTC)
            earlier = [seq for seq, logged_at in rows if logged_at < at]
            statements.clear()
            assert log_pages.seq_at(connection, job, at, last) == max(earlier, default=0) + 1
            assert len(statements) <= 6


def test_a_search_returns_where_it_stopped(
    gateway: GatewayServer, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rare match is searched among a limited number of lines; `scanned` is where to continue."""
    monkeypatch.setattr(log_pages, "MOST_SCANNED", 20_000)
    monkeypatch.setattr(log_pages, "SCAN_ROWS", 5_000)
    job = next(_jobs)
    with resources.engine.begin() as connection:
        connection.execute(text("INSERT INTO training_jobs (id, last_log_seq) VALUES (:job, 50000)"), {"job": job})
        connection.execute(
            text(
                "INSERT INTO training_logs (job_id, seq, logged_at, attempt, logged_ns, source, log_type, content)"
                " SELECT :job, n, now(), 1, 0, 's', 'stdout', CASE WHEN n = 7 THEN 'needle' ELSE 'hay' END "
                "FROM generate_series(1, 50000) AS n"
            ),
            {"job": job},
        )
    first = gateway.get(f"/jobs/{job}/logs?search=needle")
    assert (first["items"], first["scanned"]) == ([], {"first_seq": 30_001, "last_seq": 50_000})
    second = gateway.get(f"/jobs/{job}/logs?search=needle&before=30001")
    assert second["scanned"] == {"first_seq": 10_001, "last_seq": 30_000}
    third = gateway.get(f"/jobs/{job}/logs?search=needle&before=10001")
    assert ([line["seq"] for line in third["items"]], third["scanned"]) == ([7], None)
    forward = gateway.get(f"/jobs/{job}/logs?search=nothing&after=0")
    assert forward["scanned"] == {"first_seq": 1, "last_seq": 20_000}
    lines = gateway.request("GET", f"/jobs/{job}/logs/download").text.splitlines()
    assert (len(lines), lines[6].rpartition(" ")[2]) == (50_000, "needle")


@pytest.mark.parametrize(
    ("searched", "seqs"),
    [("100%_D", [1]), ("0_d", []), ("C:\\T", [2]), ("it's", [3]), ("GRÖ", [4]), ("grö", [4]), ("ße 1", [4])],
)
def test_a_search_is_for_a_text_as_it_is(
    gateway: GatewayServer, sender: Sender, resources: Resources, searched: str, seqs: list[int]
) -> None:
    """Wildcards and quotes of SQL are ordinary characters, and only the case of ASCII letters may be ignored."""
    job = next(_jobs)
    sender.send(logs("100%_done 100 done", "c:\\temp", "It's", "GRÖ grö ße 1"), job=job)
    drain(resources, "logs", job)
    assert [line["seq"] for line in gateway.get(f"/jobs/{job}/logs?search={quote(searched)}")["items"]] == seqs


def test_a_log_is_downloaded(gateway: GatewayServer, job: int) -> None:
    """A download has all matching lines as text, with time and output stream."""
    answer = gateway.request("GET", f"/jobs/{job}/logs/download?log_type=stderr&before=1")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="job-{job}.log"'
    assert answer.text.splitlines() == [
        f"2026-09-21T14:13:{20 + line}.123456Z stderr 1 ERROR Line {line}" for line in (3, 6, 9)
    ]


def test_the_log_as_loki_has_it(database_url: str, redis_url: str, resources: Resources, sender: Sender) -> None:
    """Lines from Loki equal those from Postgres; an unavailable Loki is named in the problem."""
    job = next(_jobs)
    sender.send(logs(*(f"line {n}" for n in range(1, 6)), ts=time.time_ns()), job=job)
    drain(resources, job=job)
    with LokiTwin() as twin, GatewayServer(gateway_settings(database_url, redis_url, loki_url=twin.url)) as server:
        deliver(resources, server, job)
        page = server.get(f"/jobs/{job}/logs/loki?limit=3")
        assert page["items"] == server.get(f"/jobs/{job}/logs?limit=3")["items"]
        twin.stop()
        away = server.get(f"/jobs/{job}/logs/loki", status=502)
    assert (away["type"], "LOKI_URL" in away["detail"]) == ("urn:trainwire:problem:loki-away", True)


def deliver(resources: Resources, server: GatewayServer, job: int) -> None:
    """Push a job's lines to the Loki of a gateway."""
    with resources.engine.begin() as connection:
        batch = LogBacklog(resources.engine, "loki").read(connection, [job], 1000, 1_000_000)[job]
        parts = list(LokiSink(server.app.state.resources.loki).deliver(job, batch))
    assert parts[-1].confirmed_seq == batch.last_seq


def insert_lines(resources: Resources, job: int, lines: int, content: str) -> None:
    """Store a job with so many lines, their text by an SQL expression."""
    with resources.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO training_jobs (id, last_log_seq) VALUES (:job, :n)"), {"job": job, "n": lines}
        )
        insert = (
            "INSERT INTO training_logs (job_id, seq, logged_at, attempt, logged_ns, source, log_type, content) "
            f"SELECT :job, n, now(), 1, 0, 's', 'stdout', {content} FROM generate_series(1, :n) AS n"
        )
        connection.execute(text(insert), {"job": job, "n": lines})


def test_a_page_is_bounded_in_bytes(gateway: GatewayServer, resources: Resources) -> None:
    """Of 500 lines of 1 MiB a page has 8 MiB of cut ones; reading on in either direction gives every line once."""
    job = next(_jobs)
    insert_lines(resources, job, 500, "repeat('x', 1048576)")
    seqs: list[int] = []
    page = gateway.get(f"/jobs/{job}/logs?after=0&limit=5000")
    while page["items"]:
        assert sum(len(line["text"]) for line in page["items"]) < 10 * 1024 * 1024
        assert page["items"][0]["text"].endswith("x … [cut: the line has 1048576 characters]")
        seqs += [line["seq"] for line in page["items"]]
        if page["scanned"] is None:
            break
        assert page["scanned"]["last_seq"] == seqs[-1]
        page = gateway.get(f"/jobs/{job}/logs?limit=5000&after={seqs[-1]}")
    assert seqs == list(range(1, 501))
    newest = gateway.get(f"/jobs/{job}/logs?search=XX")
    assert [line["seq"] for line in newest["items"]] == list(range(newest["scanned"]["first_seq"], 501))
    older = gateway.get(f"/jobs/{job}/logs?before={newest['first_seq']}")
    assert older["last_seq"] == newest["first_seq"] - 1
    (line,) = gateway.get(f"/jobs/{job}/logs?after=6&limit=1")["items"]
    assert (line["seq"], line["text"]) == (7, "x" * 1048576)


def test_pieces_of_a_download_are_bounded(resources: Resources) -> None:
    """A download is read in pieces of 8 MiB, or of one line that is larger, and has every line whole."""
    job = next(_jobs)
    insert_lines(resources, job, 20, "repeat(CASE WHEN n = 5 THEN '☃' ELSE 'x' END, 4000000)")
    after, lines = 0, []
    with resources.engine.connect() as connection:
        while after < 20:
            piece, after = log_pages.next_piece(connection, log_pages.LineFilter(job_id=job), after, 20)
            assert sum(len(line.text.encode()) for line in piece) <= 20_000_000
            lines += [(line.seq, len(line.text)) for line in piece]
    assert lines == [(seq, 4_000_000) for seq in range(1, 21)]


def test_the_feed_reads_long_lines_in_parts(resources: Resources) -> None:
    """One read of the feed has 1 MiB of lines, or one larger line; the next one goes on after it."""
    job = next(_jobs)
    insert_lines(resources, job, 5, "repeat('x', 700000)")
    reads = []
    with resources.engine.connect() as connection:
        after = 0
        while after < 5:
            batch = read_rows(connection, job, "logs", after)
            reads.append([row.seq for row in batch.items])
            after = batch.last
        assert [row.seq for row in read_newest(connection, job, "logs", 5)] == [4, 5]
    assert reads == [[1, 2], [3, 4], [5]]
