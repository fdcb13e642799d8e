"""Messages that trainers could not send, with real processes: killed in mid-run, or without Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories import one, rows
from tests.processes import END_S, ROOT, wait_until, workers_running
from trainwire.ingest.spool.folder import About, SourceFolder
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.tables import training_jobs, training_logs
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Logs, Message
from trainwire.stack.spool_watch import SpoolWatch
from trainwire.stores.postgres.completeness import assess
from trainwire.stores.postgres.source_positions import find_positions
from trainwire.workers.resources import Resources

STEADY_TRAINING = """
import sys, time
from trainwire import Run
run = Run(job_id=int(sys.argv[1]))
number = 0
while True:
    run.log(f"line {number}")
    print(number, flush=True)
    number += 1
    time.sleep(0.002)
"""
WHOLE_TRAINING = """
import sys, time
from trainwire import Run
began = time.monotonic()
with Run(job_id=int(sys.argv[1]), name="alone", params={"lr": 0.1}) as run:
    for step in range(500):
        run.log(f"line {step}")
        run.metric(step=step, loss=1 / (step + 1))
    run.checkpoint("s3://bucket/best.pt", kind="best")
"""
NO_SERVER = "redis://127.0.0.1:9/0"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """The spool folder of the trainers of a test."""
    return tmp_path / "spool"


def trainer(script: str, job: int, redis_url: str) -> subprocess.Popen[str]:
    """Start a trainer."""
    return subprocess.Popen(
        [sys.executable, "-c", script, str(job)],
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trainwire(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "trainwire", *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def url_of(resources: Resources) -> str:
    """Return the address of the test's Redis."""
    return resources.settings.redis_url.get_secret_value()


@pytest.fixture
def working(resources: Resources, tmp_path: Path) -> Iterator[Resources]:
    """Run workers on the test's servers."""
    with workers_running(resources.settings, tmp_path):
        yield resources


def lines(resources: Resources, job: int) -> list[str]:
    """Return the stored lines of a job, in order."""
    found: list[tuple[int, str]] = rows(resources.engine, training_logs, "job_id", "content")
    return [content for job_id, content in found if job_id == job]


@pytest.mark.parametrize("has_redis", [True, False])
def test_a_killed_trainer_loses_a_fifth_of_a_second_at_most(
    working: Resources, spool: Path, has_redis: bool
) -> None:
    """After SIGKILL, with and without Redis, lines logged 200 ms before or earlier are sent by `spool send`.

    Here those of a second before: on a busy machine a thread that is due may wait for a processor.
    """
    killed = trainer(STEADY_TRAINING, 1, url_of(working) if has_redis else NO_SERVER)
    assert killed.stdout is not None
    said: list[tuple[float, int]] = []
    for line in killed.stdout:
        said.append((time.monotonic(), int(line)))
        if said[-1][0] - said[0][0] > 2:
            break
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=END_S)
    surely = max(number for at, number in said if at < said[-1][0] - 1)
    sent = trainwire("spool", "send", "--any-server", "--spool", str(spool), REDIS_URL=url_of(working))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    stored = lines(working, 1)
    assert stored[: surely + 1] == [f"line {number}" for number in range(surely + 1)]
    assert stored == [f"line {number}" for number in range(len(stored))]
    assert not list(spool.iterdir())


def test_a_training_without_redis_runs_and_is_delivered_later(working: Resources, spool: Path) -> None:
    """It exits with 0 and a warning with the spool's folder; `spool list`, `show` and `send` find its messages."""
    alone = trainer(WHOLE_TRAINING, 2, NO_SERVER)
    _, said = alone.communicate(timeout=180)
    assert alone.returncode == 0
    assert f"they are kept in {spool}" in said
    assert "Traceback" not in said
    listed = trainwire("spool", "list", "--json", "--spool", str(spool))
    (source,) = json.loads(listed.stdout)
    assert (source["job_id"], source["in_use"], source["server"]) == (2, False, "127.0.0.1:9/0")
    assert source["messages"]["completions"] == 1
    shown = trainwire("spool", "show", "2", "--spool", str(spool))
    assert shown.stdout.splitlines() == [f"line {step}" for step in range(500)]

    refused = trainwire("spool", "send", "--spool", str(spool), REDIS_URL=url_of(working))
    assert refused.returncode == 1
    assert "left for 127.0.0.1:9/0" in refused.stdout
    sent = trainwire("spool", "send", "--any-server", "--spool", str(spool), REDIS_URL=url_of(working))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "job 2, source" in sent.stdout
    assert lines(working, 2) == [f"line {step}" for step in range(500)]
    job = one(working.engine, training_jobs, id=2)
    assert (job["status"], job["name"], job["last_metric_seq"]) == ("completed", "alone", 500)


def test_the_next_run_sends_the_spool_of_the_last_one(resources: Resources, tmp_path: Path, spool: Path) -> None:
    """After a trainer was killed without workers, the next run on the machine sends its messages as well."""
    killed = trainer(STEADY_TRAINING, 3, url_of(resources))
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) == 1000:
            break
    killed.kill()
    killed.communicate(timeout=END_S)
    resources.redis.flushall()  # and Redis loses its data
    with workers_running(resources.settings, tmp_path):
        following = trainer(STEADY_TRAINING, 4, url_of(resources))
        try:
            wait_until(lambda: len(lines(resources, 3)) >= 200, "the lines of the killed one")
            wait_until(lambda: len(list(spool.iterdir())) == 1, "the end of its folder")
        finally:
            following.kill()
            following.communicate(timeout=END_S)
    stored = lines(resources, 3)
    assert stored == [f"line {number}" for number in range(len(stored))]


def test_a_stack_sends_leftovers_by_itself(resources: Resources, spool: Path, tmp_path: Path) -> None:
    """The watch of `trainwire up` sends leftovers for its own Redis and prints a line; others stay."""
    for job, url in ((5, url_of(resources)), (6, NO_SERVER)):
        killed: Any = trainer(STEADY_TRAINING, job, url)
        for line in killed.stdout:
            if int(line) == 1000:
                break
        killed.kill()
        killed.communicate(timeout=END_S)
    said: list[str] = []
    watch = SpoolWatch(spool, url_of(resources), said.append)
    with workers_running(resources.settings, tmp_path):
        watch.start()
        try:
            wait_until(lambda: bool(said), "a line of the watch", 120)
        finally:
            watch.stop()
    assert said[0].startswith("spool: sent messages of job 5, source 0-")
    assert [path.name.partition("-")[0] for path in spool.iterdir()] == ["6"]
    assert len(lines(resources, 5)) >= 100


def test_a_spool_with_a_damaged_file_halts_nothing(working: Resources, spool: Path) -> None:
    """If the first file of a spool is unreadable, one range is lost and thousands of messages are stored."""
    about = About(1, 1, "0-damaged", 0, "elsewhere:6379/0")
    left = Spool(SourceFolder.create(spool, about), 1 << 40)
    for seq in range(1, 3001):
        body = Logs(log_type="stdout", lines=[f"line {seq} {os.urandom(400).hex()}"], ts=[seq])
        left.append("logs", seq, 1, encode_entry(Message("logs", 1, 1, about.source, seq, body)))
    left.close()
    first, second, *_ = sorted(left.folder.path.glob("logs-*.seg"))
    first.write_bytes(os.urandom(first.stat().st_size))
    lost = int(second.stem.partition("-")[2]) - 1
    assert 500 < lost < 2500
    sent = trainwire("spool", "send", "--any-server", "--spool", str(spool), REDIS_URL=url_of(working))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert f"{lost:,} are lost" in sent.stdout
    assert [line.split()[1] for line in lines(working, 1)] == [str(seq) for seq in range(lost + 1, 3001)]
    with working.engine.connect() as connection:
        found = assess(find_positions(connection, 1), 1, "running")
    assert (found.lost_by_reason, found.missing, found.dead_lettered) == ({"damaged": lost}, 0, 0)
