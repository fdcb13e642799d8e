"""However a trainer's process ends: what it said arrives, its exit code is its own, and the status says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from ingest.leftovers import send_leftovers
from ingest.settings import Timing
from schemas.tables import training_jobs, training_logs
from tests.factories import one, rows
from tests.processes import ROOT, wait_until, workers_running
from workers.resources import Resources


class End(NamedTuple):
    """A script's last words, and what is to be seen of them."""

    script: str
    exit_code: int
    status: str
    job_exit_code: int | None
    error: str | None


WITH = "with run:\n    run.log('last words')\n    "
WITHOUT = "run.log('last words')\n"
ENDS = {
    "the block ends": End(WITH + "pass", 0, "completed", None, None),
    "the script ends": End(WITHOUT, 0, "completed", None, None),
    "an exception in the block": End(WITH + "raise ValueError('boom')", 1, "failed", None, "ValueError: boom"),
    "an exception": End(WITHOUT + "raise ValueError('boom')", 1, "failed", None, "ValueError: boom"),
    "sys.exit in the block": End(WITH + "sys.exit(3)", 3, "failed", 3, "exit code 3"),
    "sys.exit": End(WITHOUT + "sys.exit(3)", 3, "failed", 3, "exit code 3"),
    "sys.exit with a text": End(WITHOUT + "sys.exit('no data')", 1, "failed", 1, "no data"),
    "sys.exit(0)": End(WITHOUT + "sys.exit(0)", 0, "completed", 0, None),
    "ctrl-C": End(
        WITH + "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -2, "failed", None, "KeyboardInterrupt"
    ),
    "SIGTERM in the block": End(
        WITH + "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", -15, "failed", 143, "terminated by SIGTERM"
    ),
    "SIGTERM": End(
        WITHOUT + "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
        -15,
        "failed",
        143,
        "terminated by SIGTERM",
    ),
    "os._exit": End(WITHOUT + "time.sleep(0.3); os._exit(4)", 4, "running", None, None),
    "SIGKILL": End(WITHOUT + "time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)", -9, "running", None, None),
    "a daemon thread that goes on talking": End(
        WITHOUT
        + "def talk():\n    while True: run.log('more'); time.sleep(0.001)\n"
        + "threading.Thread(target=talk, daemon=True).start(); time.sleep(0.1)",
        0,
        "completed",
        None,
        None,
    ),
    "a thread that is waited for": End(
        "def talk():\n    time.sleep(0.3); run.log('last words')\nthreading.Thread(target=talk).start()",
        0,
        "completed",
        None,
        None,
    ),
}
HEAD = (
    "import os, signal, sys, threading, time\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background ignores it\n"
    "from ingest import Run\nrun = Run(job_id=int(sys.argv[1]))\n"
)


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    """The scripts by name."""
    return {name: HEAD + end.script for name, end in ENDS.items()}


@pytest.fixture
def working(resources: Resources, tmp_path: Path) -> Iterator[Resources]:
    """Run workers on the test's servers."""
    with workers_running(resources.settings, tmp_path):
        yield resources


@pytest.mark.timeout(180)
def test_every_end_is_told(working: Resources, tmp_path: Path, scripts: dict[str, str]) -> None:
    """All of them at once, each a job of its own."""
    redis_url = working.settings.redis_url.get_secret_value()
    env = os.environ | {"REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    jobs = dict(enumerate(ENDS, 1))
    for job, name in jobs.items():
        ended = subprocess.run(
            [sys.executable, "-c", scripts[name], str(job)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            timeout=40,
            check=False,
        )
        assert ended.returncode == ENDS[name].exit_code, (name, ended.stderr.decode()[-2000:])
    wait_until(partial(nothing_is_left, tmp_path / "spool", redis_url), "the end of all leftovers")
    wait_until(lambda: len(rows(working.engine, training_jobs, "id", order=["id"])) == len(jobs), "all jobs")
    wrong = {name: told for job, name in jobs.items() if (told := _told(working, job)) != _wanted(ENDS[name])}
    assert wrong == {}


def nothing_is_left(spool: Path, redis_url: str) -> bool:
    """Send what is left; tell whether that was the end of it."""
    for _ in send_leftovers(spool, redis_url, Timing(), 30):
        pass
    return not list(spool.iterdir())


def _told(resources: Resources, job: int) -> tuple[object, ...]:
    found = one(resources.engine, training_jobs, id=job)
    said = rows(resources.engine, training_logs, "job_id", "content")
    has_all = (job, "last words") in said
    return has_all, found["status"], found["exit_code"], (found["error_message"] or "")[:21] or None


def _wanted(end: End) -> tuple[object, ...]:
    return True, end.status, end.job_exit_code, (end.error or "")[:21] or None


def test_the_trainers_own_handler_rules(working: Resources, tmp_path: Path) -> None:
    """A trainer that handles SIGTERM itself saves its state and ends as it likes."""
    script = HEAD + (
        "def handler(*_):\n    run.log('saving'); run.finish(status='failed', error='pre-empted'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, handler); print('ready', flush=True); time.sleep(30)"
    )
    env = os.environ | {"REDIS_URL": working.settings.redis_url.get_secret_value(), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, "77"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    wait_until(lambda: _status(working, 77) == "failed", "the completion")
    assert one(working.engine, training_jobs, id=77)["error_message"] == "pre-empted"


def test_a_forked_child_that_is_terminated_says_nothing(working: Resources, tmp_path: Path) -> None:
    """SIGTERM to a DataLoader's worker ends the worker, with the signal's own code, and not the run."""
    script = HEAD + (
        "run.log('x'); child = os.fork()\n"
        "if child == 0:\n    time.sleep(30)\n"
        "time.sleep(0.3); os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True); time.sleep(0.2)\n"
        "run.log('parent goes on'); run.finish()"
    )
    env = os.environ | {"REDIS_URL": working.settings.redis_url.get_secret_value(), "PYTHONPATH": str(ROOT)}
    before = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", script, "78"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "-15\n")
    assert time.monotonic() - before < 15
    wait_until(lambda: _status(working, 78) == "completed", "the completion")


def _status(resources: Resources, job: int) -> str | None:
    found: dict[int, str] = dict(rows(resources.engine, training_jobs, "id", "status", order=["id"]))
    return found.get(job)
