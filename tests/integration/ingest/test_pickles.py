"""Pickles of runs, and of objects that hold one, in real processes that report to the run of another."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from tests.processes import ROOT
from trainwire import Run, TrainerSettings
from trainwire.ingest.pickling import restored
from trainwire.ingest.sending.recovery import send_leftovers
from trainwire.ingest.servers.server_names import public_address
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.keys import Kind, stream_key
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.testing import RecordedRun

SCRIPT = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from trainwire import Run

class Trainer:
    def __init__(self, run):
        self.run = run

def say(trainer, name):
    trainer.run.log(f"line of {name}")
    return trainer

def process(method, trainer, exitcode=0):
    child = multiprocessing.get_context(method).Process(target=say, args=(trainer, "a"))
    child.start(); child.join()
    assert child.exitcode == exitcode

if __name__ == "__main__":
    with Run(42, redis_url=sys.argv[1]) as run:
        trainer = Trainer(run)
        run.log("line of the parent")
        if len(sys.argv) > 2:
            run.capture_output()
        BODY
"""
POOL = """
        with multiprocessing.get_context("{}").Pool(1) as pool:
            for back in pool.starmap(say, [(trainer, "a"), (trainer, "b")]):
                assert back.run is run
            pool.close(); pool.join()
"""
EXECUTOR = """
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(say, trainer, "a").result().run is run
"""
JOBLIB = """
        import joblib
        for back in joblib.Parallel(n_jobs=2)(joblib.delayed(say)(trainer, name) for name in "ab"):
            assert back.run is run
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown()
"""
WAYS = {
    "spawn": ('process("spawn", trainer)', "a"),
    "forkserver": ('process("forkserver", trainer)', "a"),
    "fork": ('process("fork", trainer)', "a"),
    "a pool of spawn": (POOL.format("spawn").strip(), "ab"),
    "a pool of fork": (POOL.format("fork").strip(), "ab"),
    "an executor": (EXECUTOR.strip(), "a"),
    "joblib": (JOBLIB.strip(), "ab"),
}
LOADED = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    trainer = pickle.load(file)
trainer["run"].log("line of another process")
trainer["run"].metric(loss=1)
trainer["run"].finish()
"""


def ended(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, in the environment of a user without a configured server."""
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    environment |= {"PYTHONPATH": str(ROOT), "TRAINWIRE_SETTLE_S": "0.5", **env}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180, check=False
    )


def bodies(valkey: Any, kind: Kind) -> list[Any]:
    """Return the bodies of one kind, without messages that a slow test has made a trainer send twice."""
    found = valkey.client.xrange(stream_key(kind, 2))
    messages = {(fields[b"source"], fields[b"seq"]): fields for _, fields in found}
    return [decode_body(kind, open_envelope(fields)) for fields in messages.values()]


def send_the_rest(valkey: Any, tmp_path: Path) -> None:
    """Send what a child could not: it has two seconds at its end, on a slow machine too few for the imports."""
    list(send_leftovers(tmp_path / "spool", valkey.url, Timing(settle_s=0.5), timeout_s=120))


@pytest.mark.parametrize("way", WAYS)
def test_processes_that_get_a_pickle_report_to_the_run(valkey: Any, tmp_path: Path, way: str) -> None:
    """Each line is there once, from a server that only the parent names; the run begins and ends once."""
    body, names = WAYS[way]
    script = tmp_path / "main.py"
    script.write_text(SCRIPT.replace("BODY", body))
    process = ended(str(script), valkey.url)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    send_the_rest(valkey, tmp_path)
    expected = ["line of the parent", *(f"line of {name}" for name in names)]
    assert sorted(line for body in bodies(valkey, "logs") for line in body.lines) == sorted(expected)
    headers = [body.progress for body in bodies(valkey, "metrics") if body.progress is not None]
    assert [progress.status for progress in headers] == ["running"]
    ends = sorted(bodies(valkey, "completions"), key=lambda end: str(end.status))
    assert [end.status for end in ends] == ["completed", *["ended"] * (len(ends) - 1)]
    assert sum(end.produced["logs"] for end in ends) == len(bodies(valkey, "logs"))


def test_a_child_does_not_capture_what_its_parent_captures(valkey: Any, tmp_path: Path) -> None:
    """It inherits the descriptors that the parent reads: each line that it prints is logged once."""
    script = tmp_path / "main.py"
    body = 'process("spawn", trainer)'
    text = SCRIPT.replace("BODY", body).replace(
        'trainer.run.log(f"line of {name}")', "trainer.run.capture_output(); print(name)"
    )
    script.write_text(text)
    process = ended(str(script), valkey.url, "capture")
    assert process.returncode == 0, process.stderr
    assert valkey.lines("stdout").count("a") == 1


def test_a_loaded_checkpoint_reports_to_the_run_that_it_was_saved_by(valkey: Any, tmp_path: Path) -> None:
    """As part of the same attempt, though its run has ended; without a server nothing is raised."""
    saved = tmp_path / "trainer.pkl"
    run = Run(42, redis_url=valkey.url, attempt=3)
    saved.write_bytes(pickle.dumps({"run": run}))
    run.finish(timeout_s=60)
    process = ended("-c", LOADED, str(saved))
    assert process.returncode == 0, process.stderr
    send_the_rest(valkey, tmp_path)
    assert valkey.lines("stdout") == ["line of another process"]
    assert [completion.status for completion in valkey.completions()] == ["completed", "ended"]
    valkey.stop()
    process = ended("-c", LOADED, str(saved), TRAINWIRE_SPOOL_DIR=str(tmp_path / "other"))
    assert process.returncode == 0
    assert "Traceback" not in process.stderr
    valkey.start()


def test_wrong_settings_of_another_process_raise_nothing(valkey: Any, tmp_path: Path) -> None:
    """Where its environment is wrong, the address of the pickle is used all the same."""
    saved = tmp_path / "trainer.pkl"
    run = Run(42, redis_url=valkey.url)
    saved.write_bytes(pickle.dumps({"run": run}))
    process = ended("-c", LOADED, str(saved), TRAINWIRE_RANK="none", REDIS_URL="nowhere")
    run.finish(timeout_s=0)
    assert process.returncode == 0, process.stderr
    send_the_rest(valkey, tmp_path)
    assert valkey.lines("stdout") == ["line of another process"]


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda held: pickle.loads(pickle.dumps(held)),
    "the oldest protocol": lambda held: pickle.loads(pickle.dumps(held, 0)),
    "cloudpickle": lambda held: pickle.loads(cloudpickle.dumps(held)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("way", COPIES)
def test_in_its_own_process_a_pickle_is_the_run(settings: TrainerSettings, way: str) -> None:
    """As a copy is."""
    run = Run(42, settings=settings)
    assert COPIES[way]({"run": run})["run"] is run
    run.finish(timeout_s=0)


def test_a_resumed_training_keeps_its_run(settings: TrainerSettings) -> None:
    """A trainer that was saved by an earlier attempt reports to the run that this process has made."""
    earlier = {"token": "of an earlier process", "job_id": 42, "attempt": 1, "rank": 0, "started_at": 1}
    run = Run(42, settings=settings, attempt=2)
    assert restored(Run, {**earlier, "address": settings.streams, "is_captured": False}) is run
    run.finish(timeout_s=0)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/1", "redis://host:6379/1"),
        ("rediss://:secret@host/0?ssl_ca_certs=/ca.pem&password=secret", "rediss://host/0?ssl_ca_certs=/ca.pem"),
        ("redis+cluster://user:secret@a:1,b:2", "redis+cluster://a:1,b:2"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
    ],
)
def test_a_pickle_has_no_password(url: str, shown: str) -> None:
    """Pickles are kept and shared; a process finds the password in its own environment."""
    assert public_address(url) == shown


def test_a_recorded_run_records_elsewhere_too(settings: TrainerSettings) -> None:
    """In a test a process of its own has a run that sends nothing."""
    run = RecordedRun(7, attempt=2)
    joined = RecordedRun._joined({"job_id": 7, "attempt": 2, "rank": None}, settings)
    assert (joined.job_id, joined.attempt) == (run.job_id, run.attempt)
    assert joined is not run
