"""`trainwire demo`: runs a small training under trainwire, and shows its rows in Postgres as they arrive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from sqlalchemy import Connection

from trainwire.cli.commands.jobs.logs import has_ended
from trainwire.cli.commands.jobs.status import status as show_status
from trainwire.cli.invocation import own_command
from trainwire.cli.terminal import console, say
from trainwire.ingest.identity.job_numbers import make_number
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem
from trainwire.stack.folders import chosen_data_dir, default_data_dir
from trainwire.stack.locate import Address, locate
from trainwire.stack.stack import python_command
from trainwire.stores.postgres.jobs.job_lookup import find_job
from trainwire.stores.rows.sparklines import LAST_ROWS, last_values

UP_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
ARRIVAL_TIMEOUT_S = 30.0
LOOK_EVERY_S = 0.2
EPOCHS = 10
TRAINING = "trainwire.cli.demo.digits"


def demo() -> None:
    """Run a demo: train a small classifier and show its stored results. Starts the stack if none is running.

    It takes about half a minute; the data is kept.
    """
    raise typer.Exit(run_demo())


def run_demo() -> int:
    """Run the demo, and return the exit code of the training."""
    began = time.monotonic()
    with running_stack() as (address, is_ours), reading(address) as connection:
        job_id = make_number()
        folder = demo_folder(address) / f"job-{job_id}"
        folder.mkdir(parents=True, exist_ok=True)
        say(f"training a small network to read digits, as job {job_id}; its output goes to {folder}/output.log\n")
        with training(job_id, folder, address) as process:
            watch(connection, job_id, process)
        code = process.returncode
        wait_for(lambda: has_ended(connection, job_id), ARRIVAL_TIMEOUT_S)
        show_result(with_web_servers(address), job_id)
        say("\nStopping; the data stays" if is_ours else "")
    say(f"\nThe demo took {time.monotonic() - began:.0f} s.")
    if code:
        say(f"The training failed with exit code {code}: see {folder}/output.log")
    return code


@contextmanager
def running_stack() -> Iterator[tuple[Address, bool]]:
    """Yield the addresses of the servers in use, else those of a new stack; and whether this process started it.

    A new stack is stopped at the end of the block.
    """
    try:
        address = locate(None, os.environ)
    except Problem:
        address = None
    if address is not None:
        say("using the trainwire that is running")
        yield address, False
        return
    data_dir = chosen_data_dir(None, os.environ) or default_data_dir(os.environ)
    say(f"starting trainwire (Postgres, Valkey, workers, beat, Flower, gateway) in {data_dir}")
    process = start_stack(data_dir)
    try:
        yield wait_until_ready(process, data_dir), True
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_TIMEOUT_S)


def start_stack(data_dir: Path) -> subprocess.Popen[bytes]:
    """Start `trainwire up` in the background; its output goes to `logs/up.log` in the data folder."""
    log_path = data_dir / "logs" / "up.log"
    log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log_path.open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - our own command list, no shell
            python_command("trainwire", "up", "--data-dir", str(data_dir)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_ready(process: subprocess.Popen[bytes], data_dir: Path) -> Address:
    """Wait until the stack has published its addresses, at most UP_TIMEOUT_S, and return them.

    Its web servers may start later. Raises `Problem` with the output of `trainwire up` if there are no addresses.
    """

    def published() -> Address | None:
        try:
            return locate(data_dir, os.environ)
        except Problem:
            return None

    wait_for(lambda: process.poll() is not None or published() is not None, UP_TIMEOUT_S)
    address = published()
    if address is None:
        output = (data_dir / "logs" / "up.log").read_text(errors="replace")
        raise Problem(f"`trainwire up` has not started; its output:\n{output}")
    return address


def with_web_servers(address: Address) -> Address:
    """Return the current addresses of the stack, including those of the web servers, which start last."""
    try:
        return address if address.data_dir is None else locate(address.data_dir, os.environ)
    except Problem:
        return address


@contextmanager
def training(job_id: int, folder: Path, address: Address) -> Iterator[subprocess.Popen[bytes]]:
    """Start the demo training under `trainwire run`; on leaving the block, wait until the training has ended."""
    command = python_command("trainwire", "run", "--job-id", str(job_id), "--name", "digits", "--")
    command += python_command(TRAINING, "--epochs", str(EPOCHS), "--out", str(folder))
    env = os.environ | {"REDIS_URL": address.need_redis_url()}
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)  # noqa: S603 - as above
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def watch(connection: Connection, job_id: int, process: subprocess.Popen[bytes]) -> None:
    """Show the job's progress, as stored in Postgres, until the training ends."""
    progress = Progress(
        TextColumn("epoch {task.completed:.0f}/{task.total:.0f}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console(),
        disable=not sys.stdout.isatty(),
    )
    epoch = 0
    with progress:
        bar = progress.add_task("waiting for the first message", total=EPOCHS)
        while process.poll() is None:
            epoch = _show(connection, job_id, progress, bar, epoch)
            time.sleep(LOOK_EVERY_S)
        _show(connection, job_id, progress, bar, epoch)


def _show(connection: Connection, job_id: int, progress: Progress, bar: TaskID, last_epoch: int) -> int:
    job = find_job(connection, job_id)
    if job is None:
        return last_epoch
    epoch = job.current_epoch or 0
    accuracy = last_values(connection, [job_id], LAST_ROWS).get(job_id, {}).get("accuracy")
    shown = "no accuracy yet" if accuracy is None else f"last val accuracy {accuracy:.4f}"
    description = f"{shown} · {sum(job.rows.values()):,} rows in Postgres"
    progress.update(bar, completed=epoch, description=description)
    # In a pipe there is no bar to move: a line for each epoch.
    if progress.disable and epoch != last_epoch:
        say(f"epoch {epoch}/{EPOCHS}: {description}")
    return epoch


def show_result(address: Address, job_id: int) -> None:
    """Print `trainwire status` of the job, read from Postgres, and commands to try next."""
    say("\nRead back from Postgres:")
    show_status(str(job_id), data_dir=address.data_dir)
    if address.flower_url:
        say(f"{'Flower ran at':<16}{address.flower_url}")
    say("\nTry next, each in a terminal of its own:")
    for arguments in ("up", f"status {job_id}", f"logs {job_id}", f"metrics {job_id}", "jobs"):
        say(f"  {own_command()} {arguments}")
    if address.gateway_url:
        say(f"\nWhile trainwire runs, see it in a browser: {address.gateway_url}")


def demo_folder(address: Address) -> Path:
    """Return the folder for the output and the checkpoints of demo trainings."""
    return (address.data_dir or default_data_dir(os.environ)) / "demo"


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll `condition()` until it is true, for at most `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
