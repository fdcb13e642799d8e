"""Processes without descriptors, disk or threads: no traceback, a warning, and all is sent once they have some."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT
from trainwire import Run, TrainerSettings
from trainwire.ingest.output.capture import RELAY
from trainwire.ingest.spool.folder import source_folders

BEGIN = """
import logging, os, resource, sys, time
import trainwire.ingest.sending.recovery_thread
trainwire.ingest.sending.recovery_thread.RECOVERY_DELAY_S = 0.2
from trainwire import Run

held = []
def exhaust():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass

def recover():
    while held:
        os.close(held.pop())

warned = []
logging.getLogger("trainwire.ingest").addFilter(lambda record: warned.append(record.getMessage()) or True)

def wait_until(condition):
    while not condition():  # the process has a time limit
        time.sleep(0.02)
"""
LEFT = """
run = Run(42, rank=1)
run.log("left")
wait_until(lambda: run._session.outbox.is_all_spooled)
os._exit(0)
"""
NO_DESCRIPTORS = """
exhaust()
run = Run(42)
run.log("without descriptors")
wait_until(lambda: sum("Too many open files" in text for text in warned) >= 2)
recover()
run.log("with descriptors")
import redis
server = redis.Redis.from_url(os.environ["REDIS_URL"])
wait_until(lambda: any(entry[b"source"].startswith(b"1-") for _, entry in server.xrange("ingest:{2}:logs")))
run.finish(timeout_s=60)
"""
"""The messages of the earlier run are recovered with pauses that double, so in a time that cannot be given."""
UPLOAD = """
run = Run(42)
wait_until(run._session.outbox.sent_kinds)
run.checkpoint(os.environ["CHECKPOINT"])
exhaust()
time.sleep(3)
recover()
run.finish(timeout_s=120)
"""
NO_DISK = """
run = Run(42)
run.log("without a disk")
wait_until(lambda: any("there is no spool (" in text for text in warned))
os.unlink(os.environ["IN_THE_WAY"])
run.log("with a disk")
run.finish(timeout_s=10)
"""
NO_THREADS = """
import threading
start = threading.Thread.start
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
run = Run(42)
run.log("without threads")
time.sleep(0.5)
threading.Thread.start = start
time.sleep(1)
run.log("with threads")
time.sleep(1)
run.finish(timeout_s=60)
"""


LAUNCHED_WITHOUT_THREADS = """
from trainwire.ingest.launcher.launch import LaunchOptions, launch
import threading
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
script = "import os, sys; os.write(1, b'x' * 200_000); os.write(2, b'y' * 200_000); sys.exit(3)"
assert launch([sys.executable, "-c", script], LaunchOptions(job_id=42, finish_timeout_s=1)) == 3
"""
CAPTURE_WITHOUT_THREADS = """
import threading
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
run = Run(42)
before = os.fstat(1).st_ino, os.fstat(2).st_ino
with run.capture_output():
    print("x" * 200_000)
    assert before == (os.fstat(1).st_ino, os.fstat(2).st_ino)
print("trained")
"""
RELAY_WITHOUT_THREADS = """
import runpy, threading
start = threading.Thread.start
def refuse_second(thread):
    threading.Thread.start = refuse
    start(thread)
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse_second
sys.argv = sys.argv[:1] + os.environ["DESCRIPTORS"].split()
runpy.run_path(os.environ["RELAY"], run_name="__main__")
"""


def ended(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; it has ended well and printed no traceback."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRAINWIRE_SETTLE_S": "0.5", **env}
    process = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    return process


def test_without_descriptors_everything_waits(valkey: Any) -> None:
    """Of this run and of an earlier one; each part that fails has one warning."""
    valkey.stop()
    ended(LEFT, REDIS_URL=valkey.url)
    valkey.start()
    process = ended(NO_DESCRIPTORS, REDIS_URL=valkey.url)
    assert sorted(set(valkey.lines("stdout"))) == ["left", "with descriptors", "without descriptors"]
    warnings = [line for line in process.stderr.splitlines() if "Too many open files" in line]
    assert 2 <= len(warnings) <= 4, process.stderr
    assert len(set(warnings)) == len(warnings)


def test_an_upload_without_descriptors_is_tried_again(
    uploading: TrainerSettings, bucket: Any, tmp_path: Path
) -> None:
    """A checkpoint of which there is a snapshot is uploaded once there are some."""
    checkpoint = tmp_path / "last.pt"
    checkpoint.write_bytes(b"12345")
    process = ended(
        UPLOAD,
        REDIS_URL=uploading.redis_url or "",
        TRAINWIRE_CHECKPOINT_BUCKET=bucket.name,
        CHECKPOINT=str(checkpoint),
    )
    (key,) = bucket.keys()
    assert bucket.read(key) == b"12345"
    assert process.stderr.count("cannot upload checkpoints") <= 1


def test_a_disk_that_comes_later_gets_everything(tmp_path: Path) -> None:
    """Messages kept in memory without a folder are written to it later; Redis is unreachable all the time."""
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    process = ended(
        NO_DISK,
        REDIS_URL="redis://127.0.0.1:1/0",
        TRAINWIRE_SPOOL_DIR=str(in_the_way / "spool"),
        IN_THE_WAY=str(in_the_way),
    )
    assert process.stderr.count("there is no spool (") == 1
    assert "they are kept in" in process.stderr
    assert len(list(source_folders(in_the_way / "spool"))) == 1


def test_without_threads_everything_waits(valkey: Any) -> None:
    """The sender is started once the system gives a thread."""
    process = ended(NO_THREADS, REDIS_URL=valkey.url)
    assert valkey.lines("stdout") == ["without threads", "with threads"]
    assert len(valkey.completions()) == 1
    assert process.stderr.count("no thread to send with") == 1


def test_a_system_without_threads_loses_no_end(
    settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where none is given until the end, everything is on the disk."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    monkeypatch.setenv("TRAINWIRE_SPOOL_DIR", str(tmp_path / "spool"))
    run = Run(42, settings=TrainerSettings.from_env().at(settings.redis_url))
    run.log("a")
    receipt = run.finish(timeout_s=5)
    assert receipt.spooled == {"logs": 1, "metrics": 1, "completions": 1}


@pytest.mark.parametrize("attempt", range(3))  # a process was aborted in two of three
def test_a_training_without_descriptors_keeps_its_exit_code(tmp_path: Path, attempt: int) -> None:
    """Neither `capture_output` nor the end of our threads at the interpreter's exit changes it."""
    script = "run = Run(42)\nexhaust()\nrun.capture_output()\nprint('trained')\n"
    env = {"REDIS_URL": "redis://127.0.0.1:1/0", "TRAINWIRE_SPOOL_DIR": str(tmp_path / str(attempt))}
    process = ended(script, **env)
    assert process.stdout == "trained\n"


def test_a_launcher_without_threads_runs_its_command(valkey: Any) -> None:
    """The command has the launcher's streams, the launcher its exit code; a warning names the cause."""
    process = ended(LAUNCHED_WITHOUT_THREADS, REDIS_URL=valkey.url)
    assert process.stdout == "x" * 200_000
    assert "y" * 200_000 in process.stderr
    assert "is shown, and not logged: can't start new thread" in process.stderr


def test_capture_output_without_threads_raises_nothing(valkey: Any) -> None:
    """The descriptors keep their destination: no thread would read what is written to a pipe."""
    process = ended(CAPTURE_WITHOUT_THREADS, REDIS_URL=valkey.url)
    assert process.stdout == "x" * 200_000 + "\ntrained\n"
    assert "no relay process, or no thread for it, could be started (can't start new thread)" in process.stderr


def test_a_relay_without_threads_ends() -> None:
    """Its exit code is 1, so that no output is redirected to a pipe that nothing reads."""
    with ExitStack() as opened:

        def piped() -> list[int]:
            descriptors = list(os.pipe())
            for descriptor in descriptors:
                opened.callback(os.close, descriptor)
            return descriptors

        control, passed, outputs = piped(), [], []
        for _ in range(2):
            source, shown, copy = piped(), piped(), piped()
            passed += [source[0], shown[1], copy[1]]
            outputs.append(f"{source[0]}:{shown[1]}:{copy[1]}")
        process = subprocess.run(
            [sys.executable, "-c", "import os, sys\n" + RELAY_WITHOUT_THREADS],
            env=os.environ | {"RELAY": str(RELAY), "DESCRIPTORS": " ".join([str(control[0]), *outputs])},
            pass_fds=[control[0], *passed],
            timeout=30,
            check=False,
        )
    assert process.returncode == 1
