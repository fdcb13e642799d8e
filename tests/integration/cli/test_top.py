"""`trainwire top --once` on real servers."""

from __future__ import annotations

import re
from functools import partial

import pytest
from sqlalchemy import Engine, text

from tests.factories import Sender, drain, logs, metrics
from tests.integration.cli.conftest import Trainwire
from trainwire.cli.top.snapshot import Snapshot, take
from trainwire.cli.top.view import age, size
from trainwire.schemas import prometheus_metrics as names
from trainwire.schemas.keys import BEAT_TICKS_KEY
from trainwire.workers.operations.measures import Sample
from trainwire.workers.resources import Resources


@pytest.fixture
def known(alone: pytest.MonkeyPatch, resources: Resources) -> None:
    """The commands know the test servers."""
    alone.setenv("DATABASE_URL", resources.settings.database_url.get_secret_value())
    alone.setenv("REDIS_URL", resources.settings.redis_url.get_secret_value())


def row(out: str, begins: str) -> list[str]:
    """Return the cells of the line that begins with a text."""
    (line,) = re.findall(rf"^{re.escape(begins)}\b.*$", out, flags=re.MULTILINE)
    return re.split(r"\s{2,}", line.strip())


@pytest.mark.usefixtures("known")
def test_streams_sinks_and_running_jobs_are_shown(
    trainwire: Trainwire, resources: Resources, sender: Sender, engine: Engine
) -> None:
    """The view has streams and sinks with their lag, running jobs, and a note if no worker answers."""
    sender.send(logs("stored", "stored too"))
    sender.send(metrics(loss=0.5))
    drain(resources)
    drain(resources, "metrics")
    sender.send(logs("waits"))
    sender.client.hset(BEAT_TICKS_KEY, "sweep", int(sender.client.time()[0]) * 1000)
    with engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET name = 'digits', progress_percent = 40"))
    done = trainwire("top", "--once")
    assert done.code == 0, done.err
    assert row(done.out, "logs")[:2] == ["logs", "1"]
    assert row(done.out, "metrics")[1] == "0"
    assert row(done.out, "loki")[:2] == ["loki", "2"]
    assert "no worker answers" in done.out
    assert "1 running" in done.out
    assert row(done.out, "  1")[:4] == ["1", "digits", "running", "40%"]


@pytest.mark.usefixtures("known")
def test_a_redis_that_is_down_is_shown(trainwire: Trainwire, alone: pytest.MonkeyPatch) -> None:
    """The view shows the data of the other store."""
    alone.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    done = trainwire("top", "--once")
    assert done.code == 0
    assert "Redis does not answer" in done.out
    assert row(done.out, "loki")[:2] == ["loki", "0"]


def test_jobs_in_trouble_have_room_beside_many_that_run(resources: Resources, engine: Engine) -> None:
    """Many running jobs do not hide newly lost ones, and old lost jobs do not hide running ones."""
    statuses = {1: "lost", 2: "stalled"} | dict.fromkeys(range(3, 30), "running")
    with engine.begin() as connection:
        for job, status in statuses.items():
            statement = text("INSERT INTO training_jobs (id, status) VALUES (:job, :status)")
            connection.execute(statement, {"job": job, "status": status})
    shown = [job.status for job in take(resources.redis, engine, resources.settings).jobs]
    assert shown == ["running"] * 10 + ["stalled", "lost"]
    with engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = 'lost' WHERE id > 20"))
    shown = [job.status for job in take(resources.redis, engine, resources.settings).jobs]
    assert shown == ["running"] * 8 + ["stalled"] + ["lost"] * 3


@pytest.mark.usefixtures("known")
def test_a_pipe_gets_the_alternative(trainwire: Trainwire) -> None:
    """Without a terminal there is no live view; the error names the alternative."""
    done = trainwire("top")
    assert done.code == 1
    assert "trainwire top --once" in done.err


def test_rates_are_the_growth_between_two_reads(resources: Resources, sender: Sender) -> None:
    """A rate is the rows stored between two reads, per second, and never negative after a reset."""
    times = iter((10.0, 12.0))
    look = partial(take, resources.redis, resources.engine, resources.settings, lambda: next(times))
    sender.send(logs("a"))
    drain(resources)
    before = look()
    sender.send(logs("b", "c", "d", "e"))
    drain(resources)
    now = look()
    assert now.rate(before, names.INGEST_ROWS, "logs") == 2.0
    assert before.rate(now, names.INGEST_ROWS, "logs") is None
    assert now.rate(None, names.INGEST_ROWS, "logs") is None
    fresh = Snapshot(20.0, (Sample(names.INGEST_ROWS, ("logs", "1"), 0.0),))
    assert fresh.rate(now, names.INGEST_ROWS, "logs") == 0.0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (age(None), "-"),
        (age(59.4), "59 s"),
        (age(119), "119 s"),
        (age(120), "2 min"),
        (age(7200), "2 h"),
        (age(200_000), "2 d"),
        (size(900), "900 B"),
        (size(1536), "1.5 KiB"),
        (size(5e10), "47 GiB"),
    ],
)
def test_figures_are_short(shown: str, expected: str) -> None:
    """A duration and a size have their largest fitting unit."""
    assert shown == expected
