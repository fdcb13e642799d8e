"""Processes that end without a completion of their own: their jobs are complete or have the reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.factories import one, rows
from tests.processes import ROOT, wait_until, workers_running
from tests.tcp_proxy import TcpProxy
from trainwire.ingest.spool.folder import read_about
from trainwire.schemas.tables import training_jobs, training_logs
from trainwire.stores.postgres.completeness import Completeness, find_completeness
from trainwire.stores.postgres.jobs.job_lookup import find_job
from trainwire.workers.resources import Resources

CHILDREN = """
import multiprocessing, os, sys
from trainwire import Run
def log(run, name):
    run.log(f"line of {name}")
with Run(job_id=int(sys.argv[1])) as run:
    run.log("line of the parent")
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=log, args=(run, name)) for name in ("a", "b")]
    silent = fork.Process(target=len, args=("",))
    for child in [*children, silent]:
        child.start()
    if os.fork() == 0:
        log(run, "c")
        sys.exit(0)
    for child in [*children, silent]:
        child.join()
    os.wait()
"""
KILLED_SCRIPT = """
import os, signal, sys, time
import redis
from trainwire import Run
run = Run.from_env()
for number in range(100):
    run.log(f"line {number}")
if sys.argv[1] == "stored":
    acks = redis.Redis.from_url(os.environ["REDIS_URL"])
    while not acks.hexists("ingest:acks:2", f"{run.source}:logs"):
        time.sleep(0.05)
else:
    while not run._session.outbox.is_all_spooled:
        time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""
FULL = """
import os, signal, time
from trainwire import Run
run = Run(job_id=3)
for number in range(400):
    run.log(os.urandom(20_000).hex())
    time.sleep(0.002)
while not run._session.outbox.is_all_spooled:
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


LATE_CHILD = """
import os, sys, time
from trainwire import Run
with Run(int(sys.argv[1])) as run:
    run.log("the parent")
    child = os.fork()
    if child == 0:
        time.sleep(2)
        run.log("the child")
        sys.exit(0)
os.waitpid(child, 0)
"""
"""A child that logs after the block of its parent has ended."""


@pytest.fixture
def working(resources: Resources, tmp_path: Path) -> Iterator[Resources]:
    """Run workers on the test's servers."""
    with workers_running(resources.settings, tmp_path):
        yield resources


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python and wait for its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def url_of(resources: Resources) -> str:
    """Return the address of the test's Redis."""
    return resources.settings.redis_url.get_secret_value()


def sum_of(resources: Resources, job: int) -> Completeness:
    """Return the sum of a job's messages, as `trainwire status` shows it."""
    with resources.engine.connect() as connection:
        found = find_job(connection, job)
        assert found is not None
        return find_completeness(connection, found)


def send(resources: Resources, spool: Path) -> subprocess.CompletedProcess[str]:
    """Send the messages left in a spool, in one pass."""
    return python(
        "-m", "trainwire", "spool", "send", "--any-server", "--spool", str(spool), REDIS_URL=url_of(resources)
    )


def test_children_that_sent_messages_report_their_end(working: Resources, tmp_path: Path) -> None:
    """Each forked child reports its number of messages, so that the job is complete.

    A child sends for two seconds at most at its end; on a busy machine the rest is in the spool.
    """
    ended = python("-c", CHILDREN, "1", REDIS_URL=url_of(working), TRAINWIRE_SPOOL_DIR=str(tmp_path / "spool"))
    assert ended.returncode == 0, ended.stderr
    send(working, tmp_path / "spool")
    logged = [f"line of {name}" for name in ("a", "b", "c", "the parent")]
    wait_until(lambda: sorted(rows(working.engine, training_logs, "content")) == logged, "all lines")
    wait_until(lambda: sum_of(working, 1).state == "complete", "the whole job")
    found = sum_of(working, 1)
    assert (found.open_sources, found.silent_sources) == ((), ())
    assert found.produced == found.stored == 2 * 3 + 3


def test_a_child_that_outlives_the_block_belongs_to_its_attempt(working: Resources, tmp_path: Path) -> None:
    """Its messages after the completion begin no second attempt, and the job stays completed."""
    ended = python("-c", LATE_CHILD, "1", REDIS_URL=url_of(working), TRAINWIRE_SPOOL_DIR=str(tmp_path / "spool"))
    assert ended.returncode == 0, ended.stderr
    send(working, tmp_path / "spool")
    wait_until(lambda: sum_of(working, 1).state == "complete", "the whole job")
    assert rows(working.engine, training_logs, "content", "attempt") == [("the parent", 1), ("the child", 1)]
    job = one(working.engine, training_jobs, id=1)
    assert (job["status"], job["attempt"]) == ("completed", 1)


def test_the_end_of_a_script_killed_under_its_launcher_is_inferred(working: Resources, tmp_path: Path) -> None:
    """Its launcher names the script's source, so the sum is unproven, before and after its spool is sent."""
    run = python(
        "-m",
        "trainwire.ingest",
        "--job-id",
        "2",
        "--",
        sys.executable,
        "-c",
        KILLED_SCRIPT,
        "stored",
        REDIS_URL=url_of(working),
    )
    assert run.returncode == 128 + signal.SIGKILL
    wait_until(lambda: sum_of(working, 2).state == "unproven", "the launcher's completion")
    sent = send(working, tmp_path / "spool")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    found = sum_of(working, 2)
    assert (found.state, found.missing) == ("unproven", 0)
    assert len(found.silent_sources) == 1
    followed = python("-m", "trainwire", "logs", "2", "-f", **addresses(working))
    assert followed.stderr == ""
    assert sum("line " in line for line in followed.stdout.splitlines()) == 100


def test_messages_dropped_by_a_killed_trainer_are_counted(working: Resources, tmp_path: Path) -> None:
    """With a spool of 4 MB, without Redis and after SIGKILL, the sum counts dropped and stored lines."""
    env = {"REDIS_URL": "redis://127.0.0.1:9/0", "TRAINWIRE_SPOOL_BYTES": str(4 * 1024 * 1024)}
    assert python("-c", FULL, **env).returncode == -signal.SIGKILL
    sent = send(working, tmp_path / "spool")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    status = python("-m", "trainwire", "status", "3", "--json", **addresses(working))
    completeness: dict[str, Any] = json.loads(status.stdout)["completeness"]
    stored = len(rows(working.engine, training_logs, "seq"))
    assert completeness["dropped"] > 0
    assert stored + completeness["dropped"] == 400
    assert (completeness["state"], completeness["missing"]) == ("open", 0)
    assert f" + {completeness['dropped']:,} dropped; ended without a completion: " in completeness["line"]


def test_one_pass_sends_the_spool_of_a_killed_trainer(working: Resources, tmp_path: Path) -> None:
    """One `trainwire spool send` sends the whole spool and removes its folder."""
    env = {"REDIS_URL": "redis://127.0.0.1:9/0", "TRAINWIRE_JOB_ID": "4"}
    assert python("-c", KILLED_SCRIPT, "spooled", **env).returncode == -signal.SIGKILL
    sent = send(working, tmp_path / "spool")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert sum_of(working, 4).missing == 0 < sum_of(working, 4).stored
    assert len(sum_of(working, 4).silent_sources) == 1
    assert not list((tmp_path / "spool").iterdir())


def addresses(resources: Resources) -> dict[str, str]:
    """Return the variables that name the test's servers."""
    return {"REDIS_URL": url_of(resources), "DATABASE_URL": resources.settings.database_url.get_secret_value()}


COPIED = """
import os, sys, time
from dataclasses import replace
from trainwire import Run, TrainerSettings
from trainwire.ingest.settings.trainer_settings import Timing
# Until now it has reached no Redis: its end waits for one, as it would for one that has answered before.
run = Run(job_id=5, settings=replace(TrainerSettings.from_env(), timing=Timing(away_s=300, settle_s=60)))
run.log("before the copy")
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
run.log("after the copy")
print(run.finish(timeout_s=300))
"""
RANKS = """
import sys
from trainwire import Run
with Run(job_id=6) as run:
    for number in range(20):
        run.log(f"line {number}")
"""


def test_a_copied_spool_takes_nothing_from_its_living_trainer(working: Resources, tmp_path: Path) -> None:
    """If a copy is sent twice while the trainer runs, its own completion counts, and its receipt is right."""
    spool, flag = tmp_path / "spool", tmp_path / "flag"
    server = urlsplit(url_of(working)).netloc.rpartition("@")[2]
    with TcpProxy(server) as proxy:
        proxy.cut()
        url = url_of(working).replace(server, proxy.url.removeprefix("http://"))
        env = os.environ | {"REDIS_URL": url, "TRAINWIRE_SPOOL_DIR": str(spool)}
        command = [sys.executable, "-c", COPIED, str(flag)]
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as trainer:
            try:
                wait_until(lambda: list(spool.glob("*/logs*")), "the first line on the disk")
                for copy in (tmp_path / "first", tmp_path / "second"):
                    shutil.copytree(spool, copy)
                    sent = send(working, copy)
                    assert sent.returncode == 0, sent.stdout + sent.stderr
                (folder,) = spool.iterdir()
                about = read_about(folder)
                found = sum_of(working, 5)
                assert about is not None
                assert (found.state, found.silent_sources) == ("open", (about.source,))
                proxy.mend()
                flag.touch()
                receipt = trainer.communicate(timeout=360)[0]
            finally:
                trainer.kill()
    assert "stored={'logs': 2, 'metrics': 1, 'completions': 1}" in receipt
    assert (sum_of(working, 5).state, sum_of(working, 5).status) == ("complete", "completed")
    assert sorted(rows(working.engine, training_logs, "content")) == ["after the copy", "before the copy"]


def test_a_rank_without_a_way_to_redis_is_named_until_its_spool_is_sent(
    working: Resources, tmp_path: Path
) -> None:
    """A job with a silent rank is not complete, and names it, until the rank's spool is sent."""
    spool = str(tmp_path / "spool")
    for rank, url in (("1", "redis://127.0.0.1:9/0"), ("0", url_of(working))):
        env = {"REDIS_URL": url, "RANK": rank, "WORLD_SIZE": "2", "TRAINWIRE_SPOOL_DIR": spool}
        ended = python("-c", RANKS, **env)
        assert ended.returncode == 0, ended.stderr
    wait_until(lambda: sum_of(working, 6).status == "completed", "rank 0")
    wait_until(lambda: sum_of(working, 6).state == "unproven", "all of its messages")
    status = python("-m", "trainwire", "status", "6", **addresses(working))
    assert "unproven: " in status.stdout
    assert "; not reported: rank 1 of 2\n" in status.stdout
    shown = json.loads(python("-m", "trainwire", "status", "6", "--json", **addresses(working)).stdout)
    assert shown["completeness"]["state"] == "unproven"
    assert shown["completeness"]["absent_ranks"] == [{"attempt": 1, "world_size": 2, "ranges": [[1, 1]]}]
    sent = send(working, tmp_path / "spool")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert sum_of(working, 6).state == "complete"
