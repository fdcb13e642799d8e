"""Metrics over HTTP: few points are returned unchanged, many are downsampled with their spikes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, drain
from tests.gateway_server import GatewayServer
from trainwire.gateway.documents.row_types import MetricPage
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.workers.resources import Resources
from trainwire.workers.rollups.follower import RollupFollower

_jobs = count(7_000)
MANY = 300_000
SPIKE_AT = 123_457


def send_points(sender: Sender, resources: Resources, job: int, points: Sequence[Point], **fields: Any) -> None:
    """Store points of a job."""
    sender.send(Metrics(points=list(points), rank=fields.pop("rank", None)), job=job, **fields)
    drain(resources, "metrics", job)


def test_few_points_come_as_they_are(gateway: GatewayServer, resources: Resources, sender: Sender) -> None:
    """Every value has its step, time, epoch and seq; 0.0 is a value, and so is NaN."""
    job = next(_jobs)
    points = [
        Point(ts=NOW_NS, step=1, epoch=0, values={"loss": 0.0, "f1": float("-inf")}),
        Point(ts=NOW_NS + 1000, step=2, values={"loss": float("nan"), "acc": 0.0}),
    ]
    send_points(sender, resources, job, points)
    page = gateway.get(f"/jobs/{job}/metrics")
    msgspec.convert(page, MetricPage, strict=True)
    micros = NOW_NS // 1000 * 1000
    assert {each["name"]: each["points"] for each in page["series"]} == {
        "accuracy": [[2, micros + 1000, 0.0, None, 2]],
        "f1": [[1, micros, "-Infinity", 0, 1]],
        "loss": [[1, micros, 0.0, 0, 1], [2, micros + 1000, "NaN", None, 2]],
    }
    assert (page["last_seq"], page["downsampled"]) == (2, False)


def test_attempts_and_ranks_are_series_of_their_own(
    gateway: GatewayServer, resources: Resources, sender: Sender
) -> None:
    """Attempts and ranks are separate series and filters; `after` omits earlier rows."""
    job = next(_jobs)
    for attempt, rank in ((1, None), (2, 0), (2, 1)):
        point = Point(ts=NOW_NS, step=5, epoch=7, values={"loss": float(attempt)})
        send_points(sender, resources, job, [point], attempt=attempt, source=f"{attempt}-{rank}", rank=rank)

    def fetch(query: str) -> list[tuple[int, int | None]]:
        series = gateway.get(f"/jobs/{job}/metrics?names=loss&{query}")["series"]
        return [(each["attempt"], each["rank"]) for each in series]

    assert fetch("") == [(1, None), (2, 0), (2, 1)]
    assert fetch("attempt=2&rank=0") == [(2, 0)]
    assert fetch("after=2") == [(2, 1)]
    assert gateway.get(f"/jobs/{job}/metrics?names=loss&x=epoch")["series"][0]["points"][0][0] == 7


@pytest.fixture
def long_job(gateway: GatewayServer, resources: Resources) -> int:  # noqa: ARG001 - the stores first
    """A job with 300,000 points, one spike up, one down, one NaN, and a metric that is in few rows."""
    job = next(_jobs)
    with resources.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO training_jobs (id, last_metric_seq) VALUES (:job, :many)"),
            {"job": job, "many": MANY},
        )
        connection.execute(
            text(
                "INSERT INTO training_metrics (job_id, seq, logged_at, step, attempt, source, loss, extra_metrics)"
                " SELECT :job, n, now(), n, 1, 's', CASE n WHEN :spike THEN 1e6 WHEN 200001 THEN -1e6 "
                "WHEN 250001 THEN 'NaN' ELSE 1.0 / n END, "
                "CASE WHEN n % 100000 = 17 THEN jsonb_build_object('val/f1', n / 1e6) END "
                "FROM generate_series(1, :many) AS n"
            ),
            {"job": job, "many": MANY, "spike": SPIKE_AT},
        )
    while not RollupFollower(resources.engine).follow(job):
        pass
    return job


def test_spikes_survive_downsampling(gateway: GatewayServer, long_job: int) -> None:
    """A thousand of 300,000 points are returned in order, with the spikes, a NaN, the first and the last."""
    page = gateway.get(f"/jobs/{long_job}/metrics?names=loss,val/f1&points=1000")
    loss, f1 = page["series"]
    values = {point[4]: point[2] for point in loss["points"]}
    assert (values[SPIKE_AT], values[200_001], values[250_001]) == (1e6, -1e6, "NaN")
    assert (values[1], values[MANY], page["last_seq"], page["downsampled"]) == (1.0, 1.0 / MANY, MANY, True)
    assert 900 <= len(loss["points"]) <= 1003
    assert list(values) == sorted(values)
    assert [point[4] for point in f1["points"]] == [17, 100_017, 200_017]


def test_points_after_a_position_are_not_downsampled(gateway: GatewayServer, long_job: int) -> None:
    """`after` returns the newer points of a long job without downsampling."""
    page = gateway.get(f"/jobs/{long_job}/metrics?names=loss&after={MANY - 3}")
    assert [point[4] for point in page["series"][0]["points"]] == [MANY - 2, MANY - 1, MANY]
    assert not page["downsampled"]


def test_too_many_names_are_refused(gateway: GatewayServer, long_job: int) -> None:
    """Too many names in one request are refused with their number."""
    names = ",".join(f"m{number}" for number in range(51))
    refusal = gateway.get(f"/jobs/{long_job}/metrics", status=422, params={"names": names})
    assert refusal["errors"] == [
        {"field": "names", "value": "51 names", "detail": "send at most 50 names per request"}
    ]


def test_a_part_of_a_series_is_finer(gateway: GatewayServer, resources: Resources, sender: Sender) -> None:
    """A range of x has as many points as the whole series, or every point if there are fewer."""
    job = next(_jobs)
    points = [Point(ts=NOW_NS + n * 1000, step=n, epoch=n // 100, values={"loss": n % 7}) for n in range(2000)]
    send_points(sender, resources, job, [*points, Point(ts=NOW_NS, values={"loss": 0.5})])

    def fetch(query: str) -> tuple[list[Any], bool]:
        page = gateway.get(f"/jobs/{job}/metrics?points=100&{query}")
        (series,) = page["series"] or [{"points": []}]
        return series["points"], page["downsampled"]

    found, is_downsampled = fetch("from=500&to=1499")
    assert (is_downsampled, found[0][0], found[-1][0]) == (True, 500, 1499)
    assert 50 <= len(found) <= 102
    found, is_downsampled = fetch("from=1000.5&to=1050")
    assert ([point[0] for point in found], is_downsampled) == (list(range(1001, 1051)), False)
    found, _ = fetch("from=1990&x=step")
    assert [point[0] for point in found] == list(range(1990, 2000))
    found, _ = fetch("x=epoch&from=3&to=3&points=1000")
    assert [point[4] for point in found] == list(range(301, 401))
    first, last = (points[at].ts // 1000 * 1000 for at in (10, 12))  # as Postgres has them
    found, _ = fetch(f"x=time&from={first - 500}&to={last + 500}")
    assert [point[4] for point in found] == [11, 12, 13]
    assert fetch("from=5000")[0] == []
    for wrong in ("from=nan", "to=inf", "from=x"):
        assert gateway.get(f"/jobs/{job}/metrics?{wrong}", status=422)
