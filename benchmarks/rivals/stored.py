"""Prints the steps that a tracker has stored, and the state that it shows for the run, as JSON.

It runs in the environment of its tracker and imports nothing of ours: `stored.py TRACKER`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

NO_STATE = "has no states"


def main() -> None:
    """Print `{"steps": [...], "state": text}`."""
    steps, state = READERS[sys.argv[1]]()
    print(json.dumps({"steps": steps, "state": state}))


def _trainwire() -> tuple[list[int], str]:
    from trainwire import Client

    job = Client().job(1)
    found = job.metrics("loss")
    steps = [step for series in found.values() for step in series.step if step is not None]
    return steps, f"{job.status}, {job.completeness().state}"


def _mlflow() -> tuple[list[int], str]:
    import mlflow

    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'rivals'")
    (run,) = client.search_runs([experiment.experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
    return steps, run.info.status.lower()


def _trackio() -> tuple[list[int], str]:
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("rivals", "run")
    return [int(entry["step"]) for entry in logs if "loss" in entry], NO_STATE


def _tensorboard() -> tuple[list[int], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        os.environ["TENSORBOARD_DIR"], size_guidance={"scalars": 0}, purge_orphaned_data=False
    )
    events.Reload()
    tags = events.Tags()["scalars"]
    return [event.step for event in events.Scalars("loss")] if "loss" in tags else [], NO_STATE


READERS: dict[str, Callable[[], tuple[list[int], str]]] = {
    "trainwire": _trainwire,
    "mlflow": _mlflow,
    "mlflow-async": _mlflow,
    "trackio": _trackio,
    "trackio-server": _trackio,
    "tensorboard": _tensorboard,
}

if __name__ == "__main__":
    main()
