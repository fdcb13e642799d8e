"""`python -m benchmarks.rivals`: the same training and the same faults with trainwire and with other trackers."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.rivals.environment import python_of_rivals
from benchmarks.rivals.faults import FAULTS, OF_SERVERS, small_disk
from benchmarks.rivals.outcomes import read_calls, reported_steps, settled
from benchmarks.rivals.trackers import Stored, Tracker, make_tracker
from benchmarks.rivals.training import TRACKERS

STEP_S: Final = 0.05
STEPS: Final = {"trainer killed": 2400, "server away for a minute": 1600, "disk full for 15 s": 600}
USUAL_STEPS: Final = 300
TRAINING_TIMEOUT_S: Final = 420.0
"""A training that runs longer than this after the fault is killed, and counts as blocked for good.

The same time is given to its start and the steps before the fault.
"""


@dataclass(frozen=True)
class Result:
    """The outcome of one training.

    `reported` is the number of steps, `finish_s` the time of the last call, None if it did not return. `stored` is
    the reason if nothing could be read.
    """

    reported: int
    longest_call_s: float
    finish_s: float | None
    end: str
    stored: Stored | str

    def row(self, tracker: str) -> str:
        """Return the result as a row of a Markdown table."""
        finish = "" if self.finish_s is None else f"{self.finish_s:.2f} s"
        if isinstance(self.stored, str):
            counts, state = f"{self.reported:,} | 0", f"unreadable: {self.stored}"
        else:
            lost = sum(step not in self.stored.steps for step in range(self.reported))
            twice = sum(count > 1 for count in self.stored.steps.values())
            counts, state = f"{lost:,} | {twice:,}", self.stored.state
        longest = f"{self.longest_call_s:.3f} s"
        return f"| {tracker} | {self.reported:,} | {counts} | {longest} | {finish} | {self.end} | {state} |"


def main() -> int:
    """Execute the chosen faults with the chosen trackers (default: all), and print a table for each fault.

    Return the exit code 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracker", choices=[*TRACKERS], action="append", help="only this one; may be repeated")
    parser.add_argument("--fault", choices=[*FAULTS], action="append", help="only this one; may be repeated")
    options = parser.parse_args()
    python = python_of_rivals()
    for fault in options.fault or FAULTS:
        print(f"\n**{fault[0].upper()}{fault[1:]}**\n")
        print("| tracker | steps reported | lost | twice | longest call | last call | training | state shown |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for name in options.tracker or TRACKERS:
            _show(name, fault, python)
    return 0


def _show(name: str, fault: str, python: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="trainwire-rivals-", ignore_cleanup_errors=True) as root,
        ExitStack() as ends,
    ):
        folder, truth = Path(root) / "tracker", Path(root) / "truth"
        folder.mkdir()
        if fault.startswith("disk"):
            ends.enter_context(small_disk(folder))
        tracker = make_tracker(name, folder, python)
        if fault in OF_SERVERS and not tracker.has_server:
            print(f"| {name} | has no server | | | | | | |", flush=True)
            return
        ends.callback(tracker.kill_server)
        print(_measured(tracker, fault, truth).row(name), flush=True)


def _measured(tracker: Tracker, fault: str, truth: Path) -> Result:
    """Run one training with a fault after the first quarter of its steps, and return its result."""
    steps = STEPS.get(fault, USUAL_STEPS)
    tracker.start_server()
    training = tracker.train(truth, steps, STEP_S)
    try:
        _await_steps(training, truth, steps // 4)
        FAULTS[fault](tracker, training)
        training.wait(TRAINING_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        end = _end(training)
        training.kill()
        training.wait()
    calls = read_calls(truth)
    reported = len(calls.steps)
    return Result(reported, max(calls.steps, default=0.0), calls.finish_s, end, settled(tracker, reported))


def _await_steps(training: subprocess.Popen[bytes], truth: Path, steps: int) -> None:
    """Wait until the training has reported `steps` steps or has ended.

    Raises `subprocess.TimeoutExpired` after `TRAINING_TIMEOUT_S` seconds.
    """
    deadline = time.monotonic() + TRAINING_TIMEOUT_S
    while training.poll() is None and reported_steps(truth) < steps:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(training.args, TRAINING_TIMEOUT_S)
        time.sleep(STEP_S)  # the file has one more line a step, so reading more often finds nothing new


def _end(training: subprocess.Popen[bytes]) -> str:
    code = training.poll()
    if code is None:
        return f"blocked for over {TRAINING_TIMEOUT_S:g} s"
    if code < 0:
        return "killed"
    return "completed" if code == 0 else f"ended by the tracker, exit code {code}"


if __name__ == "__main__":
    raise SystemExit(main())
