"""The evidence for a pre-emption: a scheduler, a signal of it, and an end that follows."""

from __future__ import annotations

import os
import time
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import pytest

from trainwire.ingest.process.preemption import SOON_S, Preemption, is_past_limit, marked_reason, scheduler_of

SLURM = {"SLURM_JOB_ID": "812"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environ", "pid", "parent", "expected"),
    [
        (SLURM, 70, 60, "Slurm job 812"),
        ({"PBS_JOBID": "9.host"}, 70, 60, "PBS job 9.host"),
        ({"LSB_JOBID": "5"}, 70, 60, "LSF job 5"),
        (SLURM | POD, 70, 60, "Slurm job 812"),
        (POD, 1, 0, "a pod of Kubernetes"),
        (POD, 7, 1, "a pod of Kubernetes"),
        (POD, 70, 60, None),  # somebody's shell in a pod
        ({"SLURM_JOB_ID": " "}, 70, 60, None),
        ({}, 1, 0, None),
    ],
)
def test_the_scheduler_is_found(environ: dict[str, str], pid: int, parent: int, expected: str | None) -> None:
    """Variables name the scheduler; in a pod only the first process and its children get its signals."""
    assert scheduler_of(environ, pid, parent) == expected


def test_the_time_limit_is_known() -> None:
    """SLURM_JOB_END_TIME is the time limit; without it, or with nonsense in it, none is known."""
    assert is_past_limit({"SLURM_JOB_END_TIME": "1000"}, 1000.0)
    assert not is_past_limit({"SLURM_JOB_END_TIME": "1000"}, 999.0)
    assert not is_past_limit({}, 1e12)
    assert not is_past_limit({"SLURM_JOB_END_TIME": "unlimited"}, 1e12)


@pytest.mark.parametrize(
    ("signals", "exit_code", "expected"),
    [
        ([SIGTERM], 143, "SIGTERM in Slurm job 812"),
        ([SIGTERM], 1, "SIGTERM in Slurm job 812"),
        ([SIGTERM], 137, "SIGTERM in Slurm job 812"),
        ([SIGTERM], 0, None),
        ([SIGUSR1], 138, "SIGUSR1 in Slurm job 812"),
        ([SIGUSR1], 1, None),
        ([SIGUSR1, SIGTERM], 1, "SIGTERM in Slurm job 812"),
        ([SIGINT], 130, None),
        ([SIGHUP], 129, None),
        ([], 143, None),
    ],
)
def test_the_end_that_follows_decides(signals: list[int], exit_code: int, expected: str | None) -> None:
    """A failure after SIGTERM or death by SIGUSR1 is a pre-emption; a success or ctrl-C is none."""
    preemption = Preemption(SLURM, None)
    for signum in signals:
        preemption.note(signum)
    assert preemption.reason(exit_code) == expected


def test_a_signal_without_a_scheduler_or_at_the_time_limit_is_none() -> None:
    """SIGTERM outside of a scheduler's job, or when its time is over, leaves a failure."""
    for environ in ({}, SLURM | {"SLURM_JOB_END_TIME": str(int(time.time()))}):
        preemption = Preemption(environ, None)
        preemption.note(SIGTERM)
        assert preemption.reason(143) is None


def test_a_script_finds_the_reason_for_a_while(tmp_path: Path) -> None:
    """The folder of the launcher has the reason after SIGTERM; much later a failure has a cause of its own."""
    preemption = Preemption(SLURM, tmp_path)
    preemption.note(SIGUSR1)
    assert marked_reason(tmp_path) is None
    preemption.note(SIGTERM)
    assert marked_reason(tmp_path) == "SIGTERM in Slurm job 812"
    long_ago = time.time() - SOON_S - 1
    for mark in tmp_path.iterdir():
        os.utime(mark, (long_ago, long_ago))
    assert marked_reason(tmp_path) is None
