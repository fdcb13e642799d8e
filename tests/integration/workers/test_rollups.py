"""Charts from blocks show what the rows have: the same ends, extremes and NaNs, in any order of steps."""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from sqlalchemy import Connection, Engine, text

from tests.factories import Sender, drain, metrics, one, rows
from trainwire.gateway.routes.metric_routes import shown_points
from trainwire.schemas.filters.job_filter import parse_fields, parse_sort
from trainwire.schemas.keys import stream_key
from trainwire.schemas.non_finite import NON_FINITE_NAMES, Number
from trainwire.schemas.tables import delivery_cursors, metric_blocks, metric_series, training_jobs
from trainwire.schemas.times import to_ns
from trainwire.stores.postgres.deletion import Choice, begin_deletion
from trainwire.stores.postgres.jobs.job_pages import JobQuery, find_places, read_columns
from trainwire.stores.postgres.jobs.job_values import NEWEST_ROWS
from trainwire.stores.rows.command_rows import newest_metrics
from trainwire.stores.rows.metric_columns import Key
from trainwire.stores.rows.metric_names import MetricNames
from trainwire.stores.rows.metric_series import MOST_ROWS, SeriesFilter, XAxis, XRange, read_series
from trainwire.workers.operations.row_retention import RowPolicy, RowRetention
from trainwire.workers.resources import Resources
from trainwire.workers.rollups import follower
from trainwire.workers.rollups.follower import RollupFollower
from trainwire.workers.rollups.pace import (
    BACKLOG_BYTES,
    BUSY_SLICE_S,
    CALM_S,
    SLICE_S,
    RollupPace,
    has_backlog,
)
from trainwire.workers.sinks import cursors

JOB = 1
DOCUMENT = Path(__file__).parents[3] / "docs" / "decisions" / "0032-rollups-of-metrics.md"
START = datetime(2026, 11, 30, tzinfo=UTC)
NAMES = ("loss", "all", "rare", "flat")
COLUMNS = "job_id, seq, attempt, rank, source, logged_at, epoch, step, loss, extra_metrics"


class Value(NamedTuple):
    """A point of a series, with the fields of `SeriesPoint`; `ts` is in nanoseconds since 1970."""

    step: int | None
    ts: int
    value: Number
    epoch: int | None
    seq: int


Series = dict[Key, list[Value]]


class Training:
    """Appends rows of job 1, with late and missing steps, NaN and infinities."""

    def __init__(self, engine: Engine, seed: int = 1) -> None:
        self.engine = engine
        self.seq = 0
        self._dice = random.Random(seed)

    def train(self, count: int, *, is_shuffled: bool = False, attempt: int = 1, rank: int | None = None) -> None:
        """Append rows; their steps are in no order if `is_shuffled`."""
        new = [
            (JOB, self.seq + n, attempt, rank, *self._row(self.seq + n, is_shuffled)) for n in range(1, count + 1)
        ]
        self.seq += count
        job = (
            "INSERT INTO training_jobs (id, last_metric_seq) VALUES (1, :seq) "
            "ON CONFLICT (id) DO UPDATE SET last_metric_seq = :seq, settled = ''"
        )
        with self.engine.begin() as connection:
            driver: Any = connection.connection.driver_connection
            with driver.cursor() as cursor, cursor.copy(f"COPY training_metrics ({COLUMNS}) FROM STDIN") as copy:
                for row in new:
                    copy.write_row(row)
            connection.execute(text(job), {"seq": self.seq})

    def _row(self, seq: int, is_shuffled: bool) -> tuple[Any, ...]:
        dice = self._dice
        late = dice.randrange(300) if dice.random() < 0.01 else 0
        step = None if dice.random() < 0.01 else dice.randrange(100_000) if is_shuffled else seq - late
        odd = dice.random() < 0.003
        loss = dice.choice((math.nan, math.inf, -math.inf)) if odd else dice.gauss(0, 1)
        rare = f', "rare": {dice.random()}' if dice.random() < 0.01 else ""
        every = '"NaN"' if dice.random() < 0.3 else dice.choice((0, dice.random()))
        at = START + timedelta(milliseconds=seq + dice.randrange(5))
        return "s", at, seq // 100, step, loss, f'{{"all": {every}, "flat": 1{rare}}}'


@pytest.fixture
def training(engine: Engine) -> Training:
    """A job without rows."""
    return Training(engine)


def follow(engine: Engine, until: float = math.inf) -> None:
    """Bring the blocks of the job up to date, in as many transactions as `until` requires."""
    while not RollupFollower(engine).follow(JOB, until):
        pass


def read(engine: Engine, wanted: SeriesFilter, points: int = 100) -> tuple[Series, bool]:
    """Return the series of a chart."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        found, is_downsampled = read_series(connection, wanted, points)
    return {
        key: list(starmap(Value, shown_points(of_key, "step"))) for key, of_key in found.items()
    }, is_downsampled


def of_rows(engine: Engine, wanted: SeriesFilter) -> Series:
    """Return the points that match, computed from all rows one by one."""
    found: Series = {}
    query = text("SELECT * FROM training_metrics WHERE job_id = 1 ORDER BY seq")
    with engine.connect() as connection:
        for row in connection.execute(query).mappings():
            ts = to_ns(row["logged_at"])
            values = row["extra_metrics"] | {"loss": row["loss"]}
            is_wanted = wanted.after < row["seq"] <= wanted.last
            is_wanted &= wanted.attempt in {None, row["attempt"]} and wanted.rank in {None, row["rank"]}
            if is_wanted and lies_within({"step": row["step"], "epoch": row["epoch"], "time": ts}, wanted.within):
                for name in wanted.names:
                    if values.get(name) is not None:
                        value = shown(float(values[name]))
                        point = Value(seq=row["seq"], ts=ts, value=value, step=row["step"], epoch=row["epoch"])
                        found.setdefault((name, row["attempt"], row["rank"]), []).append(point)
    return found


def shown(value: float) -> Any:
    """Return a number as in JSON."""
    return next((name for name, number in NON_FINITE_NAMES.items() if str(number) == str(value)), value)


def lies_within(axes: dict[str, int | None], within: XRange | None) -> bool:
    """Return whether a row lies in a range."""
    if within is None:
        return True
    x = axes[within.x]
    if x is None:
        return False
    return (within.first is None or x >= within.first) and (within.last is None or x <= within.last)


def number(point: Value) -> float:
    """Return the value as a float."""
    return NON_FINITE_NAMES[point.value] if isinstance(point.value, str) else point.value


def check(engine: Engine, wanted: SeriesFilter, points: int = 100) -> None:
    """Compare a chart with all its rows."""
    series, is_downsampled = read(engine, wanted, points)
    every = of_rows(engine, wanted)
    assert series.keys() == every.keys()
    assert is_downsampled == any(len(all_points) > points for all_points in every.values())
    for key, all_points in every.items():
        if len(all_points) <= points:
            assert series[key] == all_points
        else:
            check_downsampled(series[key], all_points, points)


def check_downsampled(chosen: list[Value], all_points: list[Value], points: int) -> None:
    """Assert that no value of a series lies outside of what a chart of it shows nearby."""
    assert (chosen[0], chosen[-1]) == (all_points[0], all_points[-1])
    by_seq = {point.seq: point for point in all_points}
    assert all(by_seq[point.seq] == point for point in chosen)
    seqs = [point.seq for point in chosen]
    assert seqs == sorted(set(seqs))
    assert points // 8 <= len(seqs) <= 1.6 * points
    nans = [point for point in all_points if point.value == "NaN"]
    assert [p for p in chosen if p.value == "NaN"][:1] == nans[:1]
    pieces = (points - 2) // 2
    reach = 2 * (all_points[-1].seq - all_points[0].seq + 1) / pieces
    steps = 2 * len(all_points) // pieces
    for index, point in enumerate(all_points):
        first = min(point.seq - reach, all_points[max(0, index - steps)].seq)
        last = max(point.seq + reach, all_points[min(len(all_points) - 1, index + steps)].seq)
        near = [number(each) for each in chosen[bisect_left(seqs, first) : bisect_right(seqs, last)]]
        if point.value == "NaN":
            assert any(map(math.isnan, near))
        else:
            assert any(value <= number(point) for value in near)
            assert any(value >= number(point) for value in near)


def wanted(training: Training, **conditions: Any) -> SeriesFilter:
    """Return the filter of a chart with all metrics of the job."""
    return SeriesFilter(job_id=JOB, names=NAMES, last=training.seq, **conditions)


def test_a_chart_of_many_points_shows_their_extremes(training: Training) -> None:
    """Whether rows entered the blocks in one transaction or in twenty, the chart has each piece's extremes."""
    for count in (1, 126, 1, 2500, 13, 6000, 700):
        training.train(count)
        follow(training.engine, until=0)
    check(training.engine, wanted(training))
    check(training.engine, wanted(training), points=1000)
    check(training.engine, wanted(training), points=20_000)
    check(training.engine, wanted(training), points=4)


@pytest.mark.parametrize("seed", range(2))
def test_parts_of_all_axes_show_their_extremes(engine: Engine, seed: int) -> None:
    """A range of steps, times or epochs has the points of the rows within it alone, late ones included."""
    training, dice = Training(engine, seed), random.Random(seed)
    training.train(6000)
    follow(engine)
    training.train(777)
    start = to_ns(START)
    axes: dict[XAxis, Callable[[float], float]] = {
        "step": lambda share: share * 6777,
        "epoch": lambda share: share * 68,
        "time": lambda share: start + share * 6777 * 1e6,
    }
    for x, at in axes.items():
        for width in (0.9, 0.3, 0.03, 0.001):
            first = dice.random()
            check(
                engine, wanted(training, within=XRange(x=x, first=at(first), last=at(first + width))), points=200
            )
        check(engine, wanted(training, within=XRange(x=x, first=at(0.5))))
        check(engine, wanted(training, within=XRange(x=x, last=at(0.99))))
    for after, last in ((0, 3000), (1234, 6777), (128, 129), (6500, 6777), (256, 5120)):
        check(engine, SeriesFilter(job_id=JOB, names=NAMES, after=after, last=last))


def test_attempts_and_ranks_have_series_of_their_own(training: Training) -> None:
    """Rows of several ranks and attempts in turns are separate series and can be chosen."""
    for attempt, rank in ((1, None), (1, 0), (1, 1), (2, 0), (1, 1), (2, 0), (1, 0)):
        training.train(400, attempt=attempt, rank=rank)
        follow(training.engine)
    for conditions in ({}, {"attempt": 1}, {"rank": 1}, {"attempt": 2, "rank": 0}, {"attempt": 3}):
        check(training.engine, wanted(training, **conditions))


def test_steps_in_no_order_are_true_points(training: Training) -> None:
    """Of steps in no order a part may lack extremes, but no point of it is wrong."""
    training.train(12_000, is_shuffled=True)
    follow(training.engine)
    check(training.engine, wanted(training))
    within = wanted(training, within=XRange(x="step", first=10_000, last=50_000))
    series, is_downsampled = read(training.engine, within)
    every = of_rows(training.engine, within)
    assert is_downsampled
    assert all(set(map(str, points)) <= set(map(str, every[key])) for key, points in series.items())
    assert len(series["loss", 1, None]) > 50


def test_a_transaction_that_fails_leaves_no_trace(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends before its commit has changed nothing: the next one stores each point once."""
    training.train(3000)
    follow(training.engine)
    training.train(3000)
    with monkeypatch.context() as patched:
        patched.setattr(follower, "REST_SHARE", _Zero())
        with pytest.raises(ZeroDivisionError):
            follow(training.engine)
    check(training.engine, wanted(training))
    follow(training.engine)
    check(training.engine, wanted(training))


class _Zero:
    """Raises at its use, after the blocks were written."""

    def __mul__(self, _other: float) -> float:
        raise ZeroDivisionError


def test_jobs_are_sorted_by_the_extremes_of_all_points(training: Training) -> None:
    """`min` and `max` have the points in blocks and the newer rows, of all attempts and ranks, without NaN."""
    for attempt, rank in ((1, 0), (1, 1), (2, 0)):
        training.train(700, attempt=attempt, rank=rank)
        follow(training.engine)
        training.train(300, attempt=attempt, rank=rank)
        fields = parse_fields(
            ",".join(f"metrics.{name}.{of}" for name in (*NAMES, "none") for of in ("min", "max"))
        )
        with training.engine.connect() as connection:
            found = read_columns(connection, [JOB], fields, START)[JOB]
        every = of_rows(training.engine, wanted(training))
        for name in (*NAMES, "none"):
            values = [
                number(point)
                for (of, _, _), points in every.items()
                for point in points
                if of == name and not math.isnan(number(point))
            ]
            expected = {shown(min(values)), shown(max(values))} if values else {None}
            assert {found[f"metrics.{name}.min"], found[f"metrics.{name}.max"]} == expected


def test_the_newest_value_of_a_metric_is_read_from_rows(training: Training) -> None:
    """Without final metrics it is the newest value in rows, whether they are in blocks already or not."""
    names = (*NAMES, "none")
    fields = parse_fields(",".join(f"metrics.{name}" for name in names))
    for is_followed in (False, True, False):
        if is_followed:
            follow(training.engine)
        else:
            training.train(40)
        with training.engine.connect() as connection:
            found = read_columns(connection, [JOB], fields, START)[JOB]
            newest = newest_metrics(connection, JOB, NEWEST_ROWS)
        for name in names:
            values = [point.values[name] for point in newest if name in point.values]
            assert found[f"metrics.{name}"] == (values[-1] if values else None)


def test_rows_of_jobs_without_a_metric_are_not_read(training: Training) -> None:
    """A sort by a metric does not look into the rows of jobs whose blocks have all rows and no such metric."""
    training.train(40)
    follow(training.engine)
    tuples = text(
        "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) "
        "FROM pg_stat_xact_user_tables WHERE relname = 'training_metrics'"
    )
    with training.engine.connect() as connection:
        for name, is_read in (("none", False), (NAMES[0], True)):
            before = connection.execute(tuples).scalar_one()
            assert len(find_places(connection, JobQuery(sort=parse_sort(f"metrics.{name}")), 10)) == 1
            assert (connection.execute(tuples).scalar_one() > before) == is_read


def test_blocks_can_be_built_again(training: Training) -> None:
    """After the statements of the document the follower stores the blocks of all rows again."""
    training.train(3000)
    follow(training.engine)
    before = rows(training.engine, metric_blocks, "points", order=("series", "level", "number"))
    with training.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET settled = 'rollups'"))
    (statements,) = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    with training.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements.replace("42", str(JOB)).splitlines():
            connection.exec_driver_sql(statement)
    assert rows(training.engine, metric_series, "series", order=("series",)) == []
    assert RollupFollower(training.engine).run(120) > 0
    assert rows(training.engine, metric_blocks, "points", order=("series", "level", "number")) == before
    check(training.engine, wanted(training))


def test_waiting_rows_of_very_many_are_sampled(training: Training) -> None:
    """While very many rows have no blocks yet, evenly spaced ones are shown, the first and the last among them."""
    training.train(1000)
    follow(training.engine)
    training.train(2 * MOST_ROWS)
    chart = wanted(training)
    series, is_downsampled = read(training.engine, chart, points=20_000)
    seqs = [point.seq for point in series["loss", 1, None]]
    assert (is_downsampled, seqs[:1001], seqs[-1]) == (True, [*range(1, 1002)], training.seq)
    assert len(seqs) == 1000 + MOST_ROWS
    follow(training.engine)
    check(training.engine, chart, points=1000)


def test_a_job_is_followed_when_it_is_due(resources: Resources, sender: Sender) -> None:
    """A tick follows new jobs and rows, settles what is quiet, and leaves a job with a few new rows for later."""
    engine = resources.engine
    sender.send(metrics(loss=0.5))
    drain(resources, "metrics")
    RollupFollower(engine).run(120)
    cursor = one(engine, delivery_cursors, sink="rollups", job_id=1)
    assert (cursor["confirmed_seq"], cursor["state"]["series"]) == (1, 1)
    sender.send(metrics(loss=0.25, acc=1.0))
    drain(resources, "metrics")
    RollupFollower(engine).run(120)
    assert one(engine, delivery_cursors, sink="rollups", job_id=1)["confirmed_seq"] == 1
    with engine.begin() as connection:
        connection.execute(text("UPDATE delivery_cursors SET next_attempt_at = now()"))
        connection.execute(text("UPDATE training_jobs SET last_seen_at = now() - interval '1 hour'"))
    RollupFollower(engine).run(120)
    assert one(engine, delivery_cursors, sink="rollups", job_id=1)["confirmed_seq"] == 2
    assert one(engine, training_jobs, id=1)["settled"] == "rollups"
    assert rows(engine, metric_series, "series", "name", order=("series",)) == [(1, "loss"), (2, "accuracy")]


def test_a_job_that_is_deleted_meanwhile_is_left_out(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that begins between the lease of a job and the first read of it fails no rollup of other jobs."""
    engine = resources.engine
    sender.send(metrics(loss=0.5), job=1)
    sender.send(metrics(loss=0.5), job=5)
    drain(resources, "metrics")
    lease_jobs = cursors.lease_jobs

    def lease_and_delete(connection: Connection, sink: str, job_ids: Collection[int]) -> list[int]:
        leased = lease_jobs(connection, sink, job_ids)
        if leased == [1]:
            with engine.begin() as other:
                begin_deletion(other, 1, Choice(), by="test", force=True)
        return leased

    monkeypatch.setattr(cursors, "lease_jobs", lease_and_delete)
    RollupFollower(engine).run(120)
    assert rows(engine, metric_series, "job_id", order=("job_id",)) == [5]
    assert rows(engine, delivery_cursors, "job_id", order=("job_id",)) == [5]


def test_removed_rows_are_in_no_chart(training: Training) -> None:
    """Charts omit rows that retention has removed, and the blocks go with the last of them."""
    training.train(2000)
    follow(training.engine)
    with training.engine.begin() as connection:
        connection.execute(text("UPDATE training_metrics SET created_at = now() - interval '40 days'"))
        old = "UPDATE training_jobs SET created_at = now() - interval '40 days', status = 'completed'"
        connection.execute(text(old))
    policy = RowPolicy("training_metrics", "last_metric_seq", "removed_metric_seq", 30, ())
    training.train(500)
    with training.engine.begin() as connection:
        connection.execute(text("UPDATE training_metrics SET created_at = now() WHERE seq > 1900"))
    assert RowRetention(training.engine, policy, batch_rows=700).run(dry_run=False) == 1900
    check(training.engine, wanted(training))
    assert min(rows(training.engine, metric_blocks, "last_seq", order=("series",))) > 1900
    follow(training.engine)
    check(training.engine, wanted(training))
    with training.engine.begin() as connection:
        connection.execute(text("UPDATE training_metrics SET created_at = now() - interval '40 days'"))
    assert RowRetention(training.engine, policy, batch_rows=300).run(dry_run=False) == 600
    assert rows(training.engine, metric_blocks, "series", order=("series",)) == []
    assert rows(training.engine, metric_series, "series", order=("series",)) == []
    assert read(training.engine, wanted(training)) == ({}, False)
    training.train(300, attempt=2)
    follow(training.engine)
    check(training.engine, wanted(training))


def test_long_names_are_told_apart(engine: Engine) -> None:
    """Names of a thousand characters that differ in the last one are series of their own."""
    names = ["\U0001f525" * 999 + last for last in "ab"]
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO training_jobs (id, last_metric_seq) VALUES (1, 2)"))
        insert = (
            "INSERT INTO training_metrics (job_id, seq, logged_at, attempt, source, extra_metrics) "
            "VALUES (1, :seq, now(), 1, 's', jsonb_build_object(CAST(:name AS text), :seq))"
        )
        for seq, name in enumerate(names, 1):
            connection.execute(text(insert), {"seq": seq, "name": name})
    follow(engine)
    series, _ = read(engine, SeriesFilter(job_id=1, names=names, last=2))
    assert [(key[0], [point.value for point in points]) for key, points in series.items()] == [
        (names[0], [1.0]),
        (names[1], [2.0]),
    ]


def test_names_are_those_of_the_series_and_of_newer_rows(training: Training) -> None:
    """The names of rows with blocks are read at once, however many rows there are."""
    training.train(500)
    follow(training.engine)
    with training.engine.begin() as connection:
        connection.execute(text("UPDATE training_metrics SET extra_metrics = NULL"))  # not read any more
    training.train(10)
    with training.engine.connect() as connection:
        known = MetricNames(clock=iter((0.0, 1.0, 2.0)).__next__).of(connection, JOB, 510)
    assert known.ordered == ("all", "flat", "loss", "rare")
    assert known.is_complete(510)


def test_a_busy_worker_rests_nine_times_as_long() -> None:
    """While drains have a backlog, a tenth of the time is spent on rollups."""
    now = 100.0
    pace = RollupPace(lambda: now)
    assert pace.slice_s(is_busy=False) == SLICE_S
    assert pace.slice_s(is_busy=True) == BUSY_SLICE_S
    pace.note(1.0)
    now += 8.9
    assert pace.slice_s(is_busy=True) == pace.slice_s(is_busy=False) == 0
    now += 0.2
    assert pace.slice_s(is_busy=True) == BUSY_SLICE_S
    now += CALM_S
    assert pace.slice_s(is_busy=False) == SLICE_S


def test_drains_that_do_not_keep_up_are_noticed(client: redis.Redis) -> None:
    """A few large entries, as those of an import, are a backlog; a few small ones are none."""
    client.xadd(stream_key("metrics", 3), {"body": b"small"})
    assert not has_backlog(client, 4)
    for _ in range(30):
        client.xadd(stream_key("metrics", 3), {"body": bytes(BACKLOG_BYTES // 20)})
    assert has_backlog(client, 4)
