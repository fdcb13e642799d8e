"""For each way a trainer's process can end, its messages arrive, and the status has the known facts of its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.factories import one, rows
from tests.processes import ROOT, wait_until, workers_running
from tests.system.ends import ENDS, HEAD, End, missing_requirement
from trainwire.ingest.sending.recovery import send_leftovers
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.tables import training_jobs, training_logs
from trainwire.workers.resources import Resources

AT_ONCE = 8
SETTLED_WITHIN_S = 180


class Outcome(NamedTuple):
    """The exit code of a process, and the stored state of its job."""

    exit_code: int
    status: str | None
    job_exit_code: int | None
    error: str | None
    lines: tuple[str, ...]


@pytest.fixture
def working(resources: Resources, tmp_path: Path) -> Iterator[Resources]:
    """Run workers on the test's servers, with a long time before a job is lost (test_lost_jobs.py)."""
    with workers_running(resources.settings, tmp_path, LOST_AFTER_S="600"):
        yield resources


@pytest.mark.parametrize("is_launched", [False, True], ids=["alone", "launched"])
def test_every_end_is_stored_as_it_was(working: Resources, tmp_path: Path, is_launched: bool) -> None:
    """Without a launcher the status has only the process' own report; a launcher's exit code takes precedence."""
    every = [(name, end) for ends in ENDS.values() for name, end in ends.items()]
    jobs = {job: found for job, found in enumerate(every, 1) if missing_requirement(found[1]) is None}
    env = _environment(working)

    def run(job: int, end: End) -> int:
        script = tmp_path / f"{job}.py"
        script.write_text(HEAD + end.script)
        launcher = [sys.executable, "-m", "trainwire.ingest", "--job-id", str(job), "--"] if is_launched else []
        command = [*launcher, *end.command, sys.executable, str(script), str(job)]
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=240, check=False)
        (tmp_path / f"{job}.err").write_bytes(ended.stderr)
        return ended.returncode

    with ThreadPoolExecutor(AT_ONCE) as pool:
        codes = dict(zip(jobs, pool.map(run, jobs, [end for _, end in jobs.values()]), strict=True))
    wait_until(partial(nothing_is_left, tmp_path / "spool", env["REDIS_URL"]), "the end of all leftovers", 120)
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while wrong := {
        name: (found_outcome, wanted, (tmp_path / f"{job}.err").read_text()[-1000:])
        for job, (name, end) in jobs.items()
        if (found_outcome := _outcome(working, job, codes[job], end, is_launched))
        != (wanted := _expected(end, is_launched))
    }:
        assert time.monotonic() < deadline, wrong
        time.sleep(0.5)


def _environment(resources: Resources) -> dict[str, str]:
    redis_url = resources.settings.redis_url.get_secret_value()
    return os.environ | {"REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}


def _expected(end: End, is_launched: bool) -> Outcome:
    lines = ("last words", *end.then)
    if is_launched:
        return Outcome(end.shell_code, end.launched_status, end.shell_code, None, lines)
    status = "running" if end.status == "lost" else end.status
    return Outcome(end.exit_code, status, end.known_code, end.error, lines)


def _outcome(resources: Resources, job: int, exit_code: int, end: End, is_launched: bool) -> Outcome:
    found = one(resources.engine, training_jobs, id=job)
    logged = [content for of, content in rows(resources.engine, training_logs, "job_id", "content") if of == job]
    wanted = ("last words", *end.then)
    error = None if is_launched else found["error_message"]
    error = end.error if end.error and error and error.startswith(end.error) else error
    lines = tuple(line for line in wanted if line in logged)
    return Outcome(exit_code, found["status"], found["exit_code"], error, lines)


def nothing_is_left(spool: Path, redis_url: str) -> bool:
    """Send the messages left in the spool; return whether it is empty then."""
    for _ in send_leftovers(spool, redis_url, Timing(), 30):
        pass
    return not list(spool.iterdir())
