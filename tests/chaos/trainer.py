"""A trainer of the chaos run: logs numbered lines and points for some seconds, then prints how many as JSON.

With a diary it writes there when it logged which line, for the checks after it is killed. Without one it forks now
and then a child that logs lines too. SIGUSR1 sets its clock back by an hour, SIGUSR2 sets it right again.
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
from typing import Final

from trainwire import Run
from trainwire.ingest.sending import outbox
from trainwire.ingest.settings.setting_groups import Timing, Vitals
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.spool import segments

TIMING = Timing(probe_after_s=2.0, longest_resend_s=5.0, settle_s=120.0, longest_backoff_s=1.0)
"""Short waits, so that faults of seconds stand for faults of minutes."""
VITALS = Vitals(interval_s=1.0)
SEGMENT_BYTES: Final = 4096
"""Small, so that an outage of seconds fills several segments."""
MEMORY_BYTES: Final = 32 * 1024
"""Small, so that messages are read back from the spool."""
HOUR_S = 3600
CHILD_EVERY = 1000
CHILD_LINES = 20


def main(job_id: int, seconds: float, redis_url: str, life: str = "1", diary_path: str = "") -> None:
    """Train, then print the counts of logged items, and whether all of them are stored, as JSON."""
    logging.basicConfig(level=logging.WARNING)
    turn_clocks()
    segments.SEGMENT_BYTES = SEGMENT_BYTES  # type: ignore[misc]
    outbox.MEMORY_BYTES = MEMORY_BYTES  # type: ignore[misc]
    settings = replace(TrainerSettings.from_env(), redis_url=redis_url, timing=TIMING, vitals=VITALS)
    # A trainer whose clock is set back names its attempt: without it workers derive the attempt from the clock.
    attempt = None if diary_path else 1
    run = Run(job_id=job_id, name=f"chaos {job_id}", attempt=attempt, settings=settings)
    ends = time.monotonic() + seconds
    lines = 0
    children: list[multiprocessing.process.BaseProcess] = []
    diary = open(diary_path or os.devnull, "w", buffering=1)  # noqa: SIM115 - open until the process ends
    while time.monotonic() < ends:
        run.log(f"life {life} line {lines}")
        diary.write(f"{lines} {time.monotonic()}\n")
        if lines % 10 == 0:
            run.metric(step=lines, loss=1 / (lines + 1))
        lines += 1
        if lines % CHILD_EVERY == 0 and not diary_path:
            children.append(fork(run, len(children)))
        time.sleep(0.004)
    for child in children:
        child.join(60)
    receipt = run.finish(timeout_s=150)
    counts = {"lines": lines, "points": (lines + 9) // 10, "complete": receipt.complete}
    print(json.dumps(counts | {"children": [child.exitcode for child in children]}), flush=True)


def fork(run: Run, number: int) -> multiprocessing.process.BaseProcess:
    """Start a child that logs lines of its own."""
    child = multiprocessing.get_context("fork").Process(target=log_lines, args=(run, number))
    child.start()
    return child


def log_lines(run: Run, number: int) -> None:
    """Log lines without a limit of file sizes: a child ends too soon to send messages that only memory holds."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for line in range(CHILD_LINES):
        run.log(f"child {number} line {line}")


def turn_clocks() -> None:
    """Give this process a clock that signals set back and right."""
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
