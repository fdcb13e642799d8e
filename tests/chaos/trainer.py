"""A trainer of the chaos test: says numbered lines and points for some seconds, then how many.

With a diary it notes there when it has said which line, for those who come after it is killed. Now and then it
forks a child that says lines too. SIGUSR1 sets its clock back by an hour, SIGUSR2 sets it right again.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import replace

from ingest import Run
from ingest.settings import Timing, TrainerSettings

TIMING = Timing(probe_after_s=2.0, patience_limit_s=5.0, settle_s=120.0, longest_backoff_s=1.0)
"""Impatient, so that trouble of seconds stands for trouble of minutes."""
HOUR_S = 3600
CHILD_EVERY = 1000
CHILD_LINES = 20


def main(job_id: int, seconds: float, redis_url: str, life: str = "1", diary_path: str = "") -> None:
    """Train; print what was said and how far it came as JSON."""
    logging.basicConfig(level=logging.WARNING)
    turn_clocks()
    settings = replace(TrainerSettings.from_env(), redis_url=redis_url, timing=TIMING)
    # One whose clock is turned says its attempt: where nobody says it, workers tell it by the clock.
    attempt = None if diary_path else 1
    run = Run(job_id=job_id, name=f"chaos {job_id}", attempt=attempt, settings=settings)
    ends = time.monotonic() + seconds
    said = 0
    children: list[multiprocessing.process.BaseProcess] = []
    diary = open(diary_path or os.devnull, "w", buffering=1)  # noqa: SIM115 - open until the process ends
    while time.monotonic() < ends:
        run.log(f"life {life} line {said}")
        diary.write(f"{said} {time.monotonic()}\n")
        if said % 10 == 0:
            run.metric(step=said, loss=1 / (said + 1))
        said += 1
        if said % CHILD_EVERY == 0 and not diary_path:
            children.append(fork(run, len(children)))
        time.sleep(0.004)
    for child in children:
        child.join(60)
    receipt = run.finish(timeout_s=150)
    told = {"lines": said, "points": (said + 9) // 10, "complete": receipt.complete}
    print(json.dumps(told | {"children": [child.exitcode for child in children]}), flush=True)


def fork(run: Run, number: int) -> multiprocessing.process.BaseProcess:
    """Start a child that says lines of its own."""
    child = multiprocessing.get_context("fork").Process(target=say, args=(run, number))
    child.start()
    return child


def say(run: Run, number: int) -> None:
    """Say lines; the disk of a child is never full: it ends too soon for what it has in memory alone."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for line in range(CHILD_LINES):
        run.log(f"child {number} line {line}")


def turn_clocks() -> None:
    """Give this process a clock that signals turn."""
    real_s, real_ns = time.time, time.time_ns
    behind_s = 0

    def turn(signum: int, _frame: object) -> None:
        nonlocal behind_s
        behind_s = HOUR_S if signum == signal.SIGUSR1 else 0

    time.time = lambda: real_s() - behind_s
    time.time_ns = lambda: real_ns() - behind_s * 10**9
    signal.signal(signal.SIGUSR1, turn)
    signal.signal(signal.SIGUSR2, turn)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
