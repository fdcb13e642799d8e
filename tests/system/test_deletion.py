"""Deletion of a job with real processes: a living trainer, a leftover spool, and SIGKILL during the deletion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from sqlalchemy import text

from tests.factories import one, rows
from tests.processes import END_S, ROOT, wait_until, workers_running
from trainwire.schemas.tables import deleted_jobs, training_jobs, training_logs
from trainwire.stores.postgres.deletion import Choice, begin_deletion
from trainwire.workers.resources import Resources

STEADY_TRAINING = """
import dataclasses, json, pathlib, sys, time
from trainwire import Run
run = Run(job_id=int(sys.argv[1]))
number = 0
while not pathlib.Path(sys.argv[2]).exists():
    run.log(f"line {number}")
    if number % 100 == 0:
        print(number, flush=True)
    number += 1
    time.sleep(0.002)
print(json.dumps(dataclasses.asdict(run.finish(timeout_s=60)) | {"lines": number}), flush=True)
"""
ROWS = 400_000


def trainer(resources: Resources, job: int, end: Path) -> subprocess.Popen[str]:
    """Start a trainer that ends once a file exists."""
    return subprocess.Popen(
        [sys.executable, "-c", STEADY_TRAINING, str(job), str(end)],
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": resources.settings.redis_url.get_secret_value()},
        stdout=subprocess.PIPE,
        text=True,
    )


def command(resources: Resources, *arguments: str) -> subprocess.Popen[str]:
    """Start a command."""
    settings = resources.settings
    return subprocess.Popen(
        [sys.executable, "-m", "trainwire", *arguments],
        cwd=ROOT,
        env=os.environ
        | {
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "LOKI_ENABLED": "false",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process, and return its exit code and its output."""
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def read_until(process: subprocess.Popen[str], line: str) -> None:
    """Read a trainer's output up to a line."""
    assert process.stdout is not None
    while process.stdout.readline().strip() != line:
        assert process.poll() is None


def stored(resources: Resources) -> list[int]:
    """Return the jobs that have log rows."""
    return sorted(set(rows(resources.engine, training_logs, "job_id")))


def test_late_messages_do_not_bring_a_deleted_job_back(resources: Resources, tmp_path: Path) -> None:
    """Messages of a living trainer and of a killed one's spool are acknowledged; another job loses nothing."""
    spool, end = tmp_path / "spool", tmp_path / "end"
    with workers_running(resources.settings, tmp_path):
        killed, living, other = (trainer(resources, job, end) for job in (1, 1, 2))
        for process in (killed, living, other):
            read_until(process, "200")
        wait_until(lambda: stored(resources) == [1, 2], "lines of both jobs")
        killed.kill()
        done(killed)
        refused = done(command(resources, "delete", "1", "--yes"))
        assert (refused[0], "job 1 is running" in refused[1]) == (1, True)
        code, output = done(command(resources, "delete", "1", "--yes", "--force"))
        assert (code, "job 1 is deleted" in output) == (0, True)
        at_deletion = one(resources.engine, deleted_jobs, job_id=1)["discarded_messages"]
        wait_until(
            lambda: one(resources.engine, deleted_jobs, job_id=1)["discarded_messages"] > at_deletion + 10,
            "the living trainer goes on",
        )
        end.touch()
        code, output = done(living)
        receipt = json.loads(output.splitlines()[-1])
        assert (code, receipt["is_job_deleted"], receipt["stored"]["logs"]) == (0, True, 0)
        _, output = done(other)
        lines = json.loads(output.splitlines()[-1])["lines"]
        code, output = done(command(resources, "spool", "send", "--spool", str(spool)))
        assert code == 0, output
        assert not list(spool.iterdir())
        wait_until(lambda: stored(resources) == [2], "the lines of the other job")
        wait_until(lambda: one(resources.engine, training_jobs, id=2)["last_log_seq"] == lines, "all of them")
        assert rows(resources.engine, training_jobs, "id", order=["id"]) == [2]
        with resources.engine.connect() as connection:
            letters = connection.execute(text("SELECT count(*) FROM dead_letters")).scalar_one()
            positions = connection.execute(text("SELECT DISTINCT job_id FROM source_positions")).scalars().all()
        assert (letters, positions) == (0, [2])


def test_killed_again_and_again_a_deletion_ends(resources: Resources, tmp_path: Path) -> None:
    """The deletion completes after SIGKILL of the command and of workers that continue it; counts are exact."""
    with resources.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO training_jobs (id, status, last_log_seq) VALUES (1, 'completed', :rows)"),
            {"rows": ROWS},
        )
        connection.execute(
            text(
                "INSERT INTO training_logs "
                "(job_id, seq, logged_at, attempt, logged_ns, source, log_type, content) "
                "SELECT 1, n, now(), 1, 0, 's', 'stdout', 'line' FROM generate_series(1, :rows) AS n"
            ),
            {"rows": ROWS},
        )
    with ExitStack() as locks:
        # A deletion waits at each of these rows until the test lets it go on: it is killed in the middle.
        holders = {part: locks.enter_context(resources.engine.connect()) for part in (ROWS // 4, ROWS // 2)}
        for part, holder in holders.items():
            holder.execute(text("SELECT FROM training_logs WHERE seq = :seq FOR UPDATE"), {"seq": part + 1})
        deleting = command(resources, "delete", "1", "--yes")
        wait_until(partial(has_deleted, resources, ROWS // 4), "a quarter is deleted", 180)
        deleting.send_signal(signal.SIGKILL)
        done(deleting)
        with workers_running(resources.settings, tmp_path) as workers:
            for part, holder in holders.items():
                holder.rollback()
                if part == ROWS // 4:
                    wait_until(partial(has_deleted, resources, ROWS // 2), "a half is deleted", 180)
                wait_until(partial(has_passed, resources, part), "progress of the worker", 180)
                os.killpg(workers[0].process.pid, signal.SIGKILL)
                workers[0].process.wait(END_S)
                workers[0].start()
            wait_until(lambda: is_finished(resources), "the end of the deletion", 180)
    assert deleted(resources) == ROWS
    assert stored(resources) == []


def has_deleted(resources: Resources, number: int) -> bool:
    """Return whether exactly so many rows are deleted."""
    return deleted(resources) == number


def has_passed(resources: Resources, number: int) -> bool:
    """Return whether more rows are deleted."""
    return deleted(resources) > number


def deleted(resources: Resources) -> int:
    """Return the number of deleted rows in the tombstone."""
    found: list[dict[str, dict[str, int]]] = rows(resources.engine, deleted_jobs, "parts", order=["job_id"])
    return found[0]["postgres"]["deleted"] if found else 0


def is_finished(resources: Resources) -> bool:
    """Return whether workers have finished the deletion."""
    return rows(resources.engine, deleted_jobs, "finished_at", order=["job_id"]) != [None]


def test_workers_carry_out_a_deletion_begun_by_the_gateway(resources: Resources, tmp_path: Path) -> None:
    """With a tombstone alone, workers delete the rows."""
    with resources.engine.begin() as connection:
        connection.execute(text("INSERT INTO training_jobs (id, status) VALUES (1, 'completed')"))
        begin_deletion(connection, 1, Choice(), by="a test")
    with workers_running(resources.settings, tmp_path):
        wait_until(lambda: is_finished(resources), "the end of the deletion")
