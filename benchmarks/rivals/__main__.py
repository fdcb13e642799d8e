"""`python -m benchmarks.rivals`: the same training and the same faults with trainwire and with other trackers."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.rivals.faults import FAULTS, OF_SERVERS, small_disk
from benchmarks.rivals.trackers import Stored, Tracker, make_tracker
from benchmarks.rivals.training import TRACKERS

REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
STEP_S: Final = 0.05
STEPS: Final = {"trainer killed": 2400, "server away for a minute": 1600, "disk full for 15 s": 600}
USUAL_STEPS: Final = 300
TRAINING_TIMEOUT_S: Final = 420.0
"""A training that runs longer than this after the fault is killed, and counts as blocked for good.

The same time is given to its start and the steps before the fault.
"""
SETTLE_S: Final = 90.0
"""A tracker may take this time after the end of a training to store the rest and to change its state."""


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
    python = _environment_of_rivals()
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
    calls = [line.split() for line in _lines(truth)]
    times = {step: float(seconds) for step, seconds in calls}
    finish = times.pop("finish", None)
    return Result(len(times), max(times.values(), default=0.0), finish, end, _settled(tracker, len(times)))


def _await_steps(training: subprocess.Popen[bytes], truth: Path, steps: int) -> None:
    """Wait until the training has reported `steps` steps or has ended.

    Raises `subprocess.TimeoutExpired` after `TRAINING_TIMEOUT_S` seconds.
    """
    deadline = time.monotonic() + TRAINING_TIMEOUT_S
    while training.poll() is None and len(_lines(truth)) < steps:
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


def _settled(tracker: Tracker, reported: int) -> Stored | str:
    """Return the steps and the state that the tracker has stored, or the reason why they cannot be read.

    Reads again until all steps are stored and the run is not shown as running, for about `SETTLE_S` seconds.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            stored: Stored | str = tracker.stored()
        except RuntimeError as exc:
            stored = str(exc)
        is_final = isinstance(stored, Stored) and stored.is_final(reported)
        if is_final or time.monotonic() > deadline:
            return stored
        time.sleep(2)  # each reading starts a process, which takes a second of CPU time from the tracker


def _lines(path: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return path.read_text().rpartition("\n")[0].splitlines()
    return []


def _environment_of_rivals() -> Path:
    """Return the interpreter of an environment with the other trackers; make it if it does not exist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainwire"
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache / f"rivals-{sys.implementation.cache_tag}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing the other trackers into {folder}; this takes some minutes, once", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        (folder / "complete").touch()
    return python


if __name__ == "__main__":
    raise SystemExit(main())
