"""Requests to stop: from Postgres over Redis, or the gateway, to trainers and launchers of their own processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import text

from tests.factories import Sender, completion, drain, logs
from tests.gateway_server import GatewayServer
from tests.processes import wait_until
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.events import TrainingStatus
from trainwire.schemas.keys import KINDS, acks_key, stop_field
from trainwire.schemas.wire.messages import Metrics
from trainwire.schemas.wire.stop_requests import StopRequest, read_stop
from trainwire.stores.postgres.jobs.job_lookup import Job, find_job
from trainwire.stores.postgres.jobs.stop_requests import (
    AlreadyEnded,
    StopRequested,
    UnknownJob,
    request_stop,
)
from trainwire.stores.postgres.jobs.user_texts import WrongText
from trainwire.workers.errors import Unavailable
from trainwire.workers.liveness.stop_publisher import publish_stops
from trainwire.workers.resources import Resources
from trainwire.workers.streams.sweep import drain_everything

JOB: Final = 7
LOOP: Final = """
import time
from trainwire import Run
with Run(7, name="looping") as run:
    print("began", flush=True)
    for step in range(100_000):
        run.metric(step=step, loss=1 / (1 + step))
        time.sleep(0.02)
        if run.should_stop:
            print("saving", flush=True)
            break
"""
DEAF: Final = """
import signal, sys, time
from trainwire import Run
{handler}
with Run(7) as run:
    print("began", flush=True)
    for step in range(100_000):
        run.metric(step=step, loss=1.0)
        time.sleep(0.02)
"""


def ask(
    resources: Resources, by: str = "anna", reason: str | None = "loss is NaN", job: int = JOB
) -> StopRequested:
    """Store a request."""
    with resources.engine.begin() as connection:
        return request_stop(connection, job, by, reason)


def job_of(resources: Resources, job: int = JOB) -> Job | None:
    """Return the job as it is stored."""
    with resources.engine.connect() as connection:
        return find_job(connection, job)


@pytest.fixture
def _workers(resources: Resources) -> Iterator[None]:
    """Drain all streams and publish requests all the time, as workers do."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            with suppress(Unavailable):
                drain_everything(resources)
                publish_stops(resources.engine, resources.streams)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join(120)


Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(params=["redis", "https"])
def begin(
    request: pytest.FixtureRequest, tmp_path: Path, resources: Resources, guarded: GatewayServer
) -> Iterator[Begin]:
    """Give a function that starts a script as a trainer, or with `launcher` under one; it sends both ways."""
    started: list[subprocess.Popen[bytes]] = []
    way = {"REDIS_URL": resources.settings.redis_url.get_secret_value()}
    if request.param == "https":
        with resources.engine.begin() as connection:
            way = {
                "TRAINWIRE_URL": guarded.url,
                "TRAINWIRE_TOKEN": create_token(connection, "ci", "trainer", JOB)[1],
            }

    def start(script: str, *launcher: str, **environment: str) -> subprocess.Popen[bytes]:
        path = tmp_path / f"train-{len(started)}.py"
        path.write_text(script)
        before = (
            [sys.executable, "-m", "trainwire.ingest", "--job-id", str(JOB), *launcher, "--"] if launcher else []
        )
        clean = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
        with (tmp_path / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                [*before, sys.executable, str(path)],
                env=clean | way | {"TRAINWIRE_HEARTBEAT_S": "0.2"} | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def output(tmp_path: Path) -> Callable[[], str]:
    """Give a function that returns all that the trainers have printed."""
    return (tmp_path / "output.txt").read_text


def runs(resources: Resources, status: str = "running", attempt: int = 1) -> Callable[[], bool]:
    """Return a condition: the job's attempt has this status, and points if it runs."""

    def is_so() -> bool:
        job = job_of(resources)
        if job is None or (job.status, job.attempt) != (status, attempt):
            return False
        return status != "running" or job.last_metric_seq > 0

    return is_so


@pytest.mark.usefixtures("_workers")
def test_a_loop_of_two_ranks_ends(resources: Resources, begin: Begin, output: Callable[[], str]) -> None:
    """Each rank's `should_stop` is true; the job is stopped by the author, with time, reason and all its rows."""
    ranks = [begin(LOOP, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    wait_until(runs(resources), "the training runs")
    asked = ask(resources)
    assert [process.wait(120) for process in ranks] == [0, 0]
    assert output().count("saving") == 2
    wait_until(runs(resources, "stopped"), "the job is stopped")
    job = job_of(resources)
    assert job is not None
    assert job.stop is not None
    assert (job.stop["requested_by"], job.stop["reason"]) == ("anna", "loss is NaN")
    assert asked.attempt == 1
    assert (job.exit_code, job.error_message, job.last_metric_seq > 0) == (None, None, True)
    assert "anna asks this training to stop: loss is NaN" in output()


POOL: Final = """
import multiprocessing, subprocess, sys, time
from trainwire import Run
def train(number):
    print("reads" if not run.should_stop else "", flush=True)
    while not run.should_stop:
        time.sleep(0.02)
    return number
{start}
with Run(7) as run:
    run.metric(step=0, loss=1.0)
    {wait}
"""
CHILDREN: Final = {
    "a pool": (
        "",
        "with multiprocessing.get_context('fork').Pool(2) as pool: assert sum(pool.map(train, [0, 1])) == 1",
    ),
    "another program": (
        "if len(sys.argv) > 1:\n    with Run() as run: sys.exit(train(0))",
        "subprocess.run([sys.executable, __file__, 'child'], check=True)",
    ),
}


@pytest.mark.usefixtures("_workers")
@pytest.mark.parametrize("launcher", [(), ("--name", "launched")])
@pytest.mark.parametrize(("start", "wait"), list(CHILDREN.values()), ids=list(CHILDREN))
def test_a_main_process_whose_children_stop_is_stopped(
    resources: Resources, begin: Begin, tmp_path: Path, *, launcher: tuple[str, ...], start: str, wait: str
) -> None:
    """Workers that report nothing read the request and end; the main process does not read it."""
    script = POOL.format(start=start, wait=wait)
    output = tmp_path / "output.txt"
    process = begin(script, *launcher, TRAINWIRE_SPOOL_DIR=str(tmp_path / "spool"))
    wait_until(runs(resources), "the training runs")
    wait_until(lambda: "reads" in output.read_text(), "a child reads it")
    ask(resources)
    assert process.wait(120) == 0
    wait_until(runs(resources, "stopped"), "the job is stopped")
    assert not list((tmp_path / "spool").glob("stopped-*"))


@pytest.mark.usefixtures("_workers")
def test_a_new_attempt_is_not_stopped_again(resources: Resources, begin: Begin) -> None:
    """A request is for the attempt of its time: the next one runs on."""
    first = begin(LOOP)
    wait_until(runs(resources), "the training runs")
    ask(resources)
    assert first.wait(120) == 0
    wait_until(runs(resources, "stopped"), "the job is stopped")
    second = begin(LOOP)
    wait_until(runs(resources, attempt=2), "the second attempt runs")
    job = job_of(resources)
    assert job is not None
    seq = job.last_metric_seq
    wait_until(lambda: (job_of(resources) or job).last_metric_seq > seq + 50, "many heartbeats later")
    assert second.poll() is None
    now = job_of(resources)
    assert now is not None
    assert (now.status, now.stop) == ("running", None)


@pytest.mark.usefixtures("_workers")
def test_a_trainer_that_was_away_gets_it_from_a_redis_that_lost_it(resources: Resources, begin: Begin) -> None:
    """The request is kept in Postgres: it outlasts a flush of Redis while the trainer is suspended."""
    process = begin(LOOP)
    wait_until(runs(resources), "the training runs")
    process.send_signal(signal.SIGSTOP)
    ask(resources)
    resources.redis.flushall()
    wait_until(lambda: resources.redis.exists(acks_key(JOB)), "the request is published again")
    process.send_signal(signal.SIGCONT)
    assert process.wait(120) == 0
    wait_until(runs(resources, "stopped"), "the job is stopped")


@pytest.mark.usefixtures("_workers")
@pytest.mark.parametrize("shell", [False, True])
def test_the_launcher_terminates_the_command(
    resources: Resources, begin: Begin, tmp_path: Path, shell: bool
) -> None:
    """A command that does not read `should_stop` gets SIGTERM, also behind a shell, and the job is stopped."""
    script = DEAF.format(handler="signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('cleaned up') or 0))")
    if shell:
        (tmp_path / "inner.py").write_text(script)
        script = (
            "import os\n"
            f"os.execvp('bash', ['bash', '-c', '{sys.executable} {tmp_path / 'inner.py'}; echo never printed'])"
        )
    process = begin(script, "--name", "launched")
    wait_until(runs(resources), "the training runs")
    ask(resources, reason=None)
    assert process.wait(120) == (143 if shell else 0)
    wait_until(runs(resources, "stopped"), "the job is stopped")
    assert "cleaned up" in (tmp_path / "output.txt").read_text()
    assert "never printed" not in (tmp_path / "output.txt").read_text()


@pytest.mark.usefixtures("_workers")
def test_the_launcher_leaves_the_end_to_a_loop(
    resources: Resources, begin: Begin, output: Callable[[], str]
) -> None:
    """A script that reads `should_stop` under the launcher ends by itself, with exit code 0, and is stopped."""
    process = begin(LOOP, "--name", "launched")
    wait_until(runs(resources), "the training runs")
    ask(resources)
    assert process.wait(120) == 0
    wait_until(lambda: (job := job_of(resources)) is not None and job.exit_code == 0, "the launcher's completion")
    job = job_of(resources)
    assert job is not None
    assert job.status == "stopped"
    assert "saving" in output()


@pytest.mark.usefixtures("_workers")
def test_with_on_stop_none_the_launcher_sends_nothing(resources: Resources, begin: Begin) -> None:
    """`--on-stop none` leaves a command alone that reads no `should_stop`; it then ends as ever."""
    process = begin(DEAF.format(handler=""), "--on-stop", "none")
    wait_until(runs(resources), "the training runs")
    ask(resources)
    key = acks_key(JOB)
    client: Any = resources.redis
    wait_until(lambda: any(name.endswith(b":stop") for name in client.hkeys(key)), "it is published")
    job = job_of(resources)
    assert job is not None
    wait_until(lambda: (job_of(resources) or job).last_metric_seq > job.last_metric_seq + 100, "it runs on")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.wait(120)
    wait_until(runs(resources, "failed"), "the job has failed")


@pytest.mark.usefixtures("_workers")
def test_a_grace_that_is_over_ends_in_sigterm(resources: Resources, begin: Begin) -> None:
    """A script that has read `should_stop` and does not end gets SIGTERM after the grace."""
    script = LOOP.replace("if run.should_stop:", "if run.should_stop and False:")
    process = begin(script, "--stop-grace-s", "1")
    wait_until(runs(resources), "the training runs")
    ask(resources)
    assert process.wait(120) == 143
    wait_until(runs(resources, "stopped"), "the job is stopped")


def test_a_second_request_is_the_first(sender: Sender, resources: Resources) -> None:
    """A request for an attempt that has one changes nothing, and publishes no second event."""
    sender.send(Metrics(name="a"), job=JOB)
    drain(resources, "metrics", job=JOB)
    first = ask(resources)
    events = publish_stops(resources.engine, resources.streams)
    assert ask(resources, by="bert", reason="other") == first
    assert events == [TrainingStatus(job_id=JOB, attempt=1, status="running", previous_status="running")]
    assert publish_stops(resources.engine, resources.streams) == []
    stored = resources.redis.hget(acks_key(JOB), stop_field("0-test"))
    assert read_stop(stored) == StopRequest(by="anna", reason="loss is NaN")  # type: ignore[arg-type]


def test_wrong_requests_have_clear_errors(sender: Sender, resources: Resources) -> None:
    """An unknown job, one that has ended, and texts that cannot be stored are refused with value and remedy."""
    with pytest.raises(UnknownJob, match="no job 7 in the database"):
        ask(resources)
    sender.send(completion(), job=JOB)
    sender.send(logs("a"), job=8)
    for kind in KINDS:
        drain(resources, kind, job=JOB)
        drain(resources, kind, job=8)
    with pytest.raises(AlreadyEnded, match=r"job 7 has ended \(completed\)"):
        ask(resources)
    with pytest.raises(WrongText, match=r"reason 'x+': has 1,001 characters: use at most 1,000"):
        ask(resources, reason="x" * 1001, job=8)
    with pytest.raises(WrongText, match="has NUL"):
        ask(resources, by="a\0b", job=8)


def test_a_request_is_open_until_all_processes_have_ended(sender: Sender, resources: Resources) -> None:
    """After the end of rank 0 another rank still gets it; the request is closed once all have ended."""
    for source in ("0-a", "1-b"):
        sender.send(Metrics(name="a"), job=JOB, source=source)
    drain(resources, "metrics", job=JOB)
    ask(resources)
    sender.send(completion(stopped=True), job=JOB, source="0-a")
    drain(resources, "completions", job=JOB)
    publish_stops(resources.engine, resources.streams)
    fields: Any = resources.redis.hkeys(acks_key(JOB))
    assert [name for name in fields if name.endswith(b":stop")] == [b"1-b:stop"]
    sender.send(completion("failed", error_message="NCCL", rank=1), job=JOB, source="1-b")
    drain(resources, "completions", job=JOB)
    publish_stops(resources.engine, resources.streams)
    with resources.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM stop_requests WHERE closed_at IS NULL")).scalar() == 0
    job: Any = job_of(resources)
    assert (job.status, job.error_message) == ("stopped", None)


def test_without_requests_nothing_is_written(sender: Sender, resources: Resources) -> None:
    """The periodic task costs one query where nobody has asked."""
    sender.send(Metrics(name="a"), job=JOB)
    drain(resources, "metrics", job=JOB)
    before = resources.redis.hgetall(acks_key(JOB))
    assert publish_stops(resources.engine, resources.streams) == []
    assert resources.redis.hgetall(acks_key(JOB)) == before
