"""Processes that a killed test process has started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.processes import wait_until

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, subprocess, sys
from tests.orphans import end_with_this_process
end_with_this_process(term_timeout_s=0.2)
sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}], start_new_session=True)"
started = subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE, start_new_session=True)
started.stdout.readline()
print(started.pid, flush=True)
sys.stdin.read()
"""


def test_the_processes_of_a_killed_test_process_end() -> None:
    """After SIGKILL of a test process, a process in another session and its child end, which ignores SIGTERM."""
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        child = psutil.Process(int(killed.stdout.readline()))
        processes = [child, *child.children()]
        assert len(processes) == 2
        killed.kill()
    wait_until(lambda: not psutil.wait_procs(processes, timeout=0)[1], "the end of what it had started")
