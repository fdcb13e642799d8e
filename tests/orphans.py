"""Ends what a test process has started if it ends without doing so itself, for example by SIGKILL.

All processes inherit the environment, also those that children of the test process start in sessions of their own:
a variable in it identifies them. Needs Linux, for pidfds and /proc.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Final

VARIABLE: Final = "TEST_PROCESS"
RUN_VARIABLE: Final = "TEST_RUN"
"""Has the value of the first test process, which has started the others."""

# Without `site` and our modules: it takes 15 ms of CPU time in each test process.
_REAPER: Final = """
import os, select, signal, sys, time
parent, mark = int(sys.argv[1]), sys.argv[2].encode()
def is_marked(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return mark in environ.read().split(b"\\0")
    except OSError:  # it has ended, or is another user's
        return False
def orphans():
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_marked(pid)]
def send(signum):
    for pid in orphans():
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass
try:
    select.select([os.pidfd_open(parent)], [], [])
except ProcessLookupError:
    pass
send(signal.SIGTERM)
deadline = time.monotonic() + float(sys.argv[3])
while orphans() and time.monotonic() < deadline:
    time.sleep(0.05)
while orphans():
    send(signal.SIGKILL)
    time.sleep(0.05)
"""


def of_the_whole_run() -> dict[str, str]:
    """Return the variable for a process that test processes share: it ends with the first of them."""
    return {VARIABLE: os.environ[RUN_VARIABLE]} if RUN_VARIABLE in os.environ else {}


def end_with_this_process(term_timeout_s: float = 5) -> None:
    """Let all processes that this process starts from now on end when it ends, in whatever way.

    They get SIGTERM, on which Postgres removes its shared memory, and SIGKILL after `term_timeout_s` seconds.
    """
    if not hasattr(os, "pidfd_open"):
        return
    value = f"{os.getpid()}-{time.time_ns()}"
    os.environ[VARIABLE] = value
    os.environ.setdefault(RUN_VARIABLE, value)
    command = [sys.executable, "-I", "-S", "-c", _REAPER]
    os.posix_spawn(
        sys.executable,
        [*command, str(os.getpid()), f"{VARIABLE}={value}", str(term_timeout_s)],
        {},  # without the variable: it must not end itself
        # Otherwise it would hold a pipe of the test process open, whose reader waits for the end of all writers.
        file_actions=[(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)],
        setsid=True,  # Ctrl-C is for the tests, which then end their processes themselves
    )
