"""Compares one table of log lines with the same table partitioned by day.

Start it by hand: `python -m benchmarks.partitions --rows 50000000`. It takes minutes and about 20 GB. The result
is decision 15. All lines of a job are within one of thirty days.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from psycopg import Connection, connect

from benchmarks.load import LINE
from benchmarks.stores import open_stores

DAYS: Final = 30
LINES: Final = 10_000
"""Number of lines per job."""
RUN_LINES: Final = 100
"""Number of consecutive rows of one job in the order of insertion."""
BATCH_ROWS: Final = 15_000
"""Rows per transaction while new lines are stored, about as many as in the drain."""
NEW_JOBS: Final = 100
PAGE_LINES: Final = 500
PAGES: Final = 300
ROUNDS: Final = 5
"""Number of alternating measurements per table: a single one varies with the writes of pages and WAL."""
ONE: Final = "lines_in_one"
BY_DAY: Final = "lines_by_day"

COLUMNS: Final = "job_id, seq, logged_at, created_at, attempt, logged_ns, source, log_type, content"
TABLE: Final = """
    CREATE TABLE {name} (
        job_id bigint, seq bigint, logged_at timestamptz NOT NULL, created_at timestamptz NOT NULL,
        attempt int NOT NULL, rank int, logged_ns smallint NOT NULL, source text NOT NULL, log_type text NOT NULL,
        level text, content text NOT NULL, PRIMARY KEY ({key})
    ) {partitioned}
"""
FILL: Final = f"""
    INSERT INTO {{name}} ({COLUMNS})
    SELECT job, run * {RUN_LINES} + line, at, at, 1, 0, '0-bench', 'stdout', %(content)s
    FROM generate_series(0, {LINES // RUN_LINES} - 1) run, generate_series(%(first)s::int, %(last)s::int) job,
        generate_series(1, {RUN_LINES}) line,
        LATERAL (SELECT now() - make_interval(days => {DAYS} - %(day)s, mins => run) AS at) AS times
"""
SIZE: Final = """
    SELECT pg_total_relation_size(%(name)s::regclass)
        + coalesce((SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(%(name)s)), 0)
"""


@dataclass
class Figures:
    """Size in GB, milliseconds of each page, lines/s while storing, and seconds to remove one day."""

    gigabytes: float
    newest_ms: list[float]
    middle_ms: list[float]
    lines_per_s: list[float] = field(default_factory=list)
    removal_s: float = 0.0


def fill(connection: Connection, name: str, jobs_a_day: int) -> Figures:
    """Create a table with the lines of thirty days, and measure its size and the time to read pages."""
    is_partitioned = name == BY_DAY
    key = "job_id, seq, created_at" if is_partitioned else "job_id, seq"
    partitioned = "PARTITION BY RANGE (created_at)" if is_partitioned else ""
    connection.execute(TABLE.format(name=name, key=key, partitioned=partitioned).encode())
    for day in range(-1, DAYS + 2) if is_partitioned else ():
        bounds = f"current_date - {DAYS - day}, current_date - {DAYS - day - 1}"
        first, last = connection.execute(f"SELECT {bounds}".encode()).fetchone() or ("", "")
        part = f"day_{day}" if day >= 0 else "day_before"
        connection.execute(
            f"CREATE TABLE {part} PARTITION OF {name} FOR VALUES FROM ('{first}') TO ('{last}')".encode()
        )
    for day in range(DAYS):
        first_job = 1 + day * jobs_a_day
        chosen = {"day": day, "first": first_job, "last": first_job + jobs_a_day - 1, "content": LINE}
        connection.execute(FILL.format(name=name).encode(), chosen)
    connection.execute(f"VACUUM ANALYZE {name}".encode())
    connection.execute("CHECKPOINT")
    size = connection.execute(SIZE, {"name": name}).fetchone()
    assert size is not None
    jobs = chosen_jobs(DAYS * jobs_a_day)
    newest = [page_ms(connection, name, job, "ORDER BY seq DESC") for job in jobs]
    middle = [page_ms(connection, name, job, f"AND seq > {LINES // 2} ORDER BY seq") for job in jobs]
    return Figures(float(size[0]) / 2**30, newest, middle)


def remove_a_day(connection: Connection, name: str, jobs_a_day: int) -> float:
    """Remove the lines of the oldest day; return the seconds."""
    began = time.perf_counter()
    if name == BY_DAY:
        connection.execute("DROP TABLE day_0")
    else:
        remove(connection, range(1, jobs_a_day + 1))
    return time.perf_counter() - began


def chosen_jobs(jobs: int) -> list[int]:
    """Return a fixed random sample of jobs, whose pages are read."""
    return random.Random(1).sample(range(1, jobs + 1), PAGES)


def page_ms(connection: Connection, name: str, job: int, rest: str) -> float:
    """Return the milliseconds to read a page of lines; `rest` is the rest of the query."""
    began = time.perf_counter()
    query = f"SELECT {COLUMNS} FROM {name} WHERE job_id = %s {rest} LIMIT {PAGE_LINES}"
    found = connection.execute(query.encode(), [job]).fetchall()
    assert len(found) == PAGE_LINES
    return (time.perf_counter() - began) * 1000


def arrive(connection: Connection, name: str, first_job: int) -> float:
    """Store the lines of new jobs with one COPY per batch; return the lines/s."""
    batches = list(new_rows(first_job))
    connection.execute("CHECKPOINT")
    began = time.perf_counter()
    for batch in batches:
        with connection.cursor().copy(f"COPY {name} ({COLUMNS}) FROM STDIN".encode()) as copy:
            copy.write("".join(batch))
    return NEW_JOBS * LINES / (time.perf_counter() - began)


def new_rows(first_job: int) -> Iterator[Sequence[str]]:
    """Yield batches of rows as COPY text, with the jobs alternating."""
    now = time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime())
    batch: list[str] = []
    for run in range(LINES // RUN_LINES):
        for job in range(first_job, first_job + NEW_JOBS):
            lines = range(run * RUN_LINES + 1, (run + 1) * RUN_LINES + 1)
            batch += [f"{job}\t{line}\t{now}\t{now}\t1\t0\t0-bench\tstdout\t{LINE}\n" for line in lines]
            if len(batch) >= BATCH_ROWS:
                yield batch
                batch = []
    yield batch


def remove(connection: Connection, jobs: range) -> None:
    """Delete the lines of some jobs like `trainwire.workers.operations.row_retention`, then vacuum the table."""
    for job in jobs:
        for after in range(0, LINES, 2000):
            batch = f"DELETE FROM {ONE} WHERE job_id = %s AND seq > %s AND seq <= %s"
            connection.execute(batch.encode(), [job, after, after + 2000])
    connection.execute(f"VACUUM {ONE}".encode())


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=20)[-1]


def main() -> None:
    """Measure both tables, and print the results as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000_000)
    jobs_a_day = parser.parse_args().rows // DAYS // LINES
    with open_stores() as resources:
        url = resources.settings.database_url.get_secret_value()
        with connect(url, autocommit=True) as connection:
            found = {name: fill(connection, name, jobs_a_day) for name in (ONE, BY_DAY)}
            for round_ in range(ROUNDS):
                first_job = 1 + DAYS * jobs_a_day + round_ * NEW_JOBS
                for name, figures in found.items():
                    figures.lines_per_s.append(arrive(connection, name, first_job))
            for name, figures in found.items():
                figures.removal_s = remove_a_day(connection, name, jobs_a_day)
    columns = (
        "table",
        "GB",
        "new lines/s",
        "newest page, ms (p95)",
        "page in the middle, ms (p95)",
        "a day removed, s",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, it in found.items():
        rates = it.lines_per_s
        arrived = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        pages = " | ".join("{:.1f} ({:.1f})".format(*spread(pages)) for pages in (it.newest_ms, it.middle_ms))
        print(f"| {name} | {it.gigabytes:.1f} | {arrived} | {pages} | {it.removal_s:.1f} |")


if __name__ == "__main__":
    main()
