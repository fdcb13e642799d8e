"""Real workers and beat verify checkpoint files, through an object store that comes late or never answers."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from tests.factories import Sender, checkpoint, completion, logs, rows
from tests.processes import END_S, START_TIMEOUT_S, WAIT_S, Process, wait_until, workers_running
from tests.s3 import s3_client, s3_environment, s3_server
from trainwire.schemas.tables import training_checkpoints, training_jobs, training_logs
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

BUCKET = "models"


def environment(url: str) -> dict[str, str]:
    """Return the workers' variables for the store at `url`."""
    return s3_environment(url) | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "DELIVERY_BACKOFF_CAP_S": "1",
        "CHECKPOINT_RETENTION": "on",
        "CHECKPOINT_KEEP_LAST": "1",
        "TRAINWIRE_CHECKPOINT_BUCKET": BUCKET,
    }


def _running(resources: Resources, folder: Path, url: str) -> AbstractContextManager[list[Process]]:
    return workers_running(resources.settings, folder, workers=1, beat=True, **environment(url))


def verified(resources: Resources) -> list[bool]:
    """Return for each checkpoint whether it is verified."""
    return [at is not None for at in rows(resources.engine, training_checkpoints, "verified_at")]


def test_a_store_that_comes_late_is_asked_again(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Rows are stored while S3 is down; a worker is killed; once S3 answers, beat has all of them verified."""
    port = free_port()
    with _running(resources, tmp_path, f"http://127.0.0.1:{port}") as workers:
        for number in (1, 2):
            uri = f"s3://{BUCKET}/checkpoints/1/1/epoch-{number}.pt"
            sender.send(checkpoint(uri, "epoch", size_bytes=7))
        wait_until(lambda: len(verified(resources)) == 2, "the rows")
        wait_until(lambda: "verification.unavailable" in workers[0].output, "the first try")
        assert verified(resources) == [False, False]
        os.killpg(workers[0].process.pid, signal.SIGKILL)
        workers[0].process.wait(END_S)
        workers[0].start()
        with s3_server(port) as url:
            client = s3_client(url)
            client.create_bucket(Bucket=BUCKET)
            for number in (1, 2):
                client.put_object(Bucket=BUCKET, Key=f"checkpoints/1/1/epoch-{number}.pt", Body=b"weights")
            wait_until(lambda: verified(resources) == [True, True], "beat's verification", 120)


def test_a_store_that_never_answers_delays_no_other_work(
    resources: Resources, sender: Sender, tmp_path: Path
) -> None:
    """While the only worker for checkpoint files hangs on S3, another one stores logs, checkpoints and the end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        others = ("--queues", "ingest,beat,notify", "--concurrency", "1")
        worker = Process(
            resources.settings, tmp_path / "store.log", "worker", "--name", "store", *others, **environment(url)
        )
        try:
            worker.start()
            with _running(resources, tmp_path, url):
                wait_until(worker.is_ready, "the worker's start", START_TIMEOUT_S)
                sender.send(checkpoint(f"s3://{BUCKET}/checkpoints/1/a.pt"))
                silent.settimeout(WAIT_S)
                asked, _ = silent.accept()
                with asked:
                    sender.send(logs("still here"))
                    sender.send(checkpoint(f"s3://{BUCKET}/checkpoints/1/b.pt"))
                    sender.send(completion())
                    wait_until(lambda: rows(resources.engine, training_logs, "content") == ["still here"], "logs")
                    wait_until(lambda: len(verified(resources)) == 2, "checkpoints")
                    wait_until(
                        lambda: rows(resources.engine, training_jobs, "status", order=["id"]) == ["completed"],
                        "the end",
                    )
                    assert verified(resources) == [False, False]
                silent.close()  # ends the request that still hangs
        finally:
            worker.stop()
