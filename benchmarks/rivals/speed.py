"""Measures the same work with trainwire and with other trackers: values from a training until they are stored."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.rivals.environment import python_of_rivals
from benchmarks.rivals.outcomes import read_calls, settled
from benchmarks.rivals.trackers import Stored, make_tracker

NAMES: Final = ("trainwire", "mlflow", "mlflow-async", "trackio", "trackio-server")
STEPS: Final = 2000
VALUES: Final = 10
"""Number of values per step."""
TIMEOUT_S: Final = 300


@dataclass(frozen=True)
class Speed:
    """The speed of a training that only reports, with one tracker.

    `calls_s` are the seconds of all calls of steps; `total_s` has also the last call, which waits until all is
    sent. The CPU seconds are those of the training since its first step, and of the server during the training.
    `missing` is the number of steps that are not stored in the end.
    """

    tracker: str
    values: int
    median_us: float
    calls_s: float
    total_s: float
    training_cpu_s: float
    server_cpu_s: float
    missing: int


def measure(name: str, steps: int) -> Speed:
    """Report `steps` steps of `VALUES` values as fast as the tracker `name` takes them.

    Raises `RuntimeError` if the training fails, or if the stored steps cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="trainwire-rivals-", ignore_cleanup_errors=True) as root:
        folder, truth = Path(root) / "tracker", Path(root) / "truth"
        folder.mkdir()
        tracker = make_tracker(name, folder, python_of_rivals())
        try:
            tracker.start_server()
            before_s = tracker.server_cpu_s()
            code = tracker.train(truth, steps, 0, VALUES).wait(TIMEOUT_S)
            server_cpu_s = tracker.server_cpu_s() - before_s
            calls = read_calls(truth)
            if code or calls.finish_s is None or calls.cpu_s is None:
                raise RuntimeError(f"{name}: {(folder / 'training.log').read_text()[-2000:]}")
            stored = settled(tracker, steps)
        finally:
            tracker.kill_server()
    if not isinstance(stored, Stored):
        raise RuntimeError(f"{name}: {stored}")  # noqa: TRY004
    calls_s = sum(calls.steps)
    return Speed(
        tracker=name,
        values=steps * VALUES,
        median_us=1e6 * statistics.median(calls.steps),
        calls_s=calls_s,
        total_s=calls_s + calls.finish_s,
        training_cpu_s=calls.cpu_s,
        server_cpu_s=server_cpu_s,
        missing=sum(step not in stored.steps for step in range(steps)),
    )
