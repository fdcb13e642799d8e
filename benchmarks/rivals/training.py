"""A training that reports values each step to one tracker, and writes each step that it reported to a file.

It runs in the environment of its tracker and imports nothing of ours:
`training.py TRACKER TRUTH STEPS STEP_S VALUES`. A line of the file TRUTH is a step and the seconds of its call.
The last two lines are `finish` and the seconds of the last call, and `cpu` and the CPU seconds since the first
step. From the signal SIGUSR1 on, the clock of the process is an hour behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

HOUR_S = 3600
Log = Callable[[int, dict[str, float]], object]
Finish = Callable[[], object]


def main() -> None:
    """Report all steps, and end the run."""
    tracker, truth_path, steps, step_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    names = ["loss", *(f"metric{number}" for number in range(1, int(sys.argv[5])))]
    signal.signal(signal.SIGUSR1, _set_clock_back)
    log, finish = TRACKERS[tracker]()
    cpu_s = time.process_time()
    with open(truth_path, "w", buffering=1) as truth:
        for step in range(steps):
            if step_s:
                time.sleep(step_s)  # stands for the computation of a step; it needs no CPU, as on a GPU
            values = {name: number + 1 / (step + 1) for number, name in enumerate(names)}
            begin = time.monotonic()
            log(step, values)
            truth.write(f"{step} {time.monotonic() - begin:.6f}\n")
        begin = time.monotonic()
        finish()
        truth.write(f"finish {time.monotonic() - begin:.6f}\n")
        truth.write(f"cpu {time.process_time() - cpu_s:.6f}\n")


def _set_clock_back(_signal: int, _frame: object) -> None:
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - HOUR_S
    time.time_ns = lambda: now_ns() - HOUR_S * 10**9


def _trainwire() -> tuple[Log, Finish]:
    from trainwire import Run

    run = Run(1, "rivals")
    return lambda step, values: run.metric(step=step, **values), run.finish


def _mlflow(*, synchronous: bool) -> tuple[Log, Finish]:
    import mlflow

    mlflow.set_experiment("rivals")
    mlflow.start_run()
    return (lambda step, values: mlflow.log_metrics(values, step, synchronous=synchronous)), mlflow.end_run


def _trackio() -> tuple[Log, Finish]:
    import trackio

    trackio.init(project="rivals", name="run", auto_log_gpu=False, auto_log_cpu=False)
    return lambda step, values: trackio.log(values, step=step), trackio.finish


def _wandb() -> tuple[Log, Finish]:
    import wandb

    run = wandb.init(project="rivals", dir=os.environ["WANDB_DIR"], settings=wandb.Settings(console="off"))
    return lambda step, values: run.log(values, step=step), run.finish


def _tensorboard() -> tuple[Log, Finish]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    # Its default is to write every two minutes.
    writer = EventFileWriter(os.environ["TENSORBOARD_DIR"], flush_secs=1)

    def log(step: int, values: dict[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    return log, writer.close


TRACKERS: dict[str, Callable[[], tuple[Log, Finish]]] = {
    "trainwire": _trainwire,
    "mlflow": lambda: _mlflow(synchronous=True),
    "mlflow-async": lambda: _mlflow(synchronous=False),
    "trackio": _trackio,
    "trackio-server": _trackio,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}

if __name__ == "__main__":
    main()
