"""Clocks that a test of the training freezes or moves affect neither the messages nor the ends of runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes import ROOT

SCRIPT = """
import sys, threading, time
steps = iter(range(0, 10**12, 10**6))
CLOCKS = {"frozen": lambda: 1e9, "in 1970": lambda: 60.0}
CLOCKS |= {"forwards": lambda: next(steps), "backwards": lambda: -next(steps)}

def replace(now):
    # As freezegun does: in the module `time`, and wherever a module has taken a function from it.
    real = {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")}
    fakes = {id(function): now for function in real.values()}
    fakes |= {id(getattr(time, f"{name}_ns")): lambda: int(now() * 1e9) for name in real}
    for name, module in list(sys.modules.items()):
        if name not in {"threading", "__main__"}:
            for attribute, value in list(vars(module).items()):
                if id(value) in fakes:
                    setattr(module, attribute, fakes[id(value)])

if sys.argv[2] == "before":
    replace(CLOCKS[sys.argv[1]])
from trainwire import Run
run = Run(42)
run.log("first")
if sys.argv[2] == "after":
    replace(CLOCKS[sys.argv[1]])
run.log("second")
receipt = run.finish(timeout_s=eval(sys.argv[3]))
print(sum(receipt.produced.values()))
"""


def ended(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script to its end, which comes within three minutes."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """Give the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("clock", ["frozen", "in 1970", "forwards", "backwards"])
def test_finish_ends_under_any_clock(silent: str, clock: str, when: str) -> None:
    """Without a server and a spool its deadline alone ends it."""
    process = ended(clock, when, "1", REDIS_URL=silent, TRAINWIRE_SPOOL_DIR="off")
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) >= 3
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("timeout_s", ["-1", "float('-inf')", "0"])
def test_finish_ends_at_once_with_no_time_to_wait(silent: str, timeout_s: str) -> None:
    """A negative time is none."""
    process = ended("frozen", "after", timeout_s, REDIS_URL=silent, TRAINWIRE_SPOOL_DIR="off")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("timeout_s", ["None", "float('nan')", "float('inf')"])
@pytest.mark.parametrize("clock", ["frozen", "backwards"])
def test_everything_is_sent_under_any_clock(valkey: Any, clock: str, timeout_s: str) -> None:
    """The end waits for the workers as long as it always does, however long it was to wait."""
    process = ended(clock, "after", timeout_s, REDIS_URL=valkey.url, TRAINWIRE_SETTLE_S="0.5")
    assert process.returncode == 0, process.stderr
    assert valkey.lines("stdout") == ["first", "second"]
    assert len(valkey.completions()) == 1
