"""The end of a run waits for an unreachable Redis: never beyond its deadline, and not in vain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_until
from trainwire import Run, TrainerSettings
from trainwire.ingest.settings.setting_groups import SpoolSettings

Until = Callable[..., None]
ROOT = Path(__file__).parents[3]
NOBODY = "redis://127.0.0.1:9/0"
LINES = 300
TALKER = f"""
import time
from trainwire import Run
run = Run(42)
for number in range({LINES}):
    run.log(str(number))
    time.sleep(0.002)
while not run._session.outbox.is_all_spooled:
    time.sleep(0.02)
print("said", flush=True)
time.sleep(600)
"""


@pytest.fixture
def spooling(settings: TrainerSettings, tmp_path: Path) -> TrainerSettings:
    """Return settings with a spool, and a short limit for a Redis that never answers."""
    return replace(
        settings, timing=replace(settings.timing, away_s=0.3), spool=SpoolSettings(folder=tmp_path / "spool")
    )


def test_a_redis_that_never_answered_is_not_waited_for(spooling: TrainerSettings) -> None:
    """Everything is in the spool: the end comes long before the deadline."""
    run = Run(42, redis_url=NOBODY, settings=spooling)
    run.log("kept")
    receipt = run.finish(timeout_s=3600)
    assert receipt.spooled == receipt.produced == {"logs": 1, "metrics": 1, "completions": 1}


def test_an_outage_that_has_lasted_as_long_is_not_waited_for(
    valkey: Any, spooling: TrainerSettings, until: Until
) -> None:
    """With an outage during the run, the end waits until the outage has lasted for the timeout, and no longer."""
    runs = [Run(42, settings=spooling), Run(42, rank=1, settings=spooling)]
    until(lambda: len(valkey.entries("metrics")) == 2)
    valkey.stop()
    outages = [run._session._sender._outage for run in runs]
    for run in runs:
        run.log("kept")
    until(lambda: all(outage.since for outage in outages))
    just_now, long_ago = outages[0].since, outages[1].since
    assert just_now is not None
    assert long_ago is not None
    runs[0].finish(timeout_s=1.0)
    assert time.monotonic() - just_now >= 1.0  # it might have come back
    outages[1].since = long_ago - 3600
    assert runs[1].finish(timeout_s=3600).spooled["logs"] == 1
    valkey.start()


def test_without_a_spool_the_whole_time_is_used(settings: TrainerSettings) -> None:
    """Messages in memory alone are lost with the process: Redis is tried up to the deadline."""
    run = Run(42, redis_url=NOBODY, settings=replace(settings, timing=replace(settings.timing, away_s=0.1)))
    run.log("lost")
    began = time.monotonic()
    receipt = run.finish(timeout_s=1.0)
    assert time.monotonic() - began >= 1.0
    assert receipt.unsent["logs"] == 1


@pytest.fixture
def hole() -> Iterator[str]:
    """Give the address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def test_a_redis_that_hangs_keeps_nothing_off_the_disk(
    hole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the sender waits for an answer, new values are written to the disk, and survive SIGKILL."""
    monkeypatch.setenv("REDIS_URL", hole)
    trainer = subprocess.Popen([sys.executable, "-c", TALKER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "said\n"
    trainer.kill()
    trainer.communicate(timeout=180)
    show = [sys.executable, "-m", "trainwire", "spool", "show", "42", "--spool", str(tmp_path / "spool")]
    shown = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True, timeout=180)
    assert shown.stdout.splitlines() == [str(number) for number in range(LINES)]


KILLED_WORKER = """
import os, signal, sys
from trainwire import Run
from trainwire.ingest.sending import session
from trainwire.ingest.sending.sender import Sender

with Run(42, redis_url=sys.argv[1]) as run:
    run.log("line of the parent")
    child = os.fork()
    if not child:
        Sender._exchange = lambda self: False  # it is killed before it has sent anything
        run.metric(loss=1.0)
        while not run._session.outbox.is_all_spooled or run._session.outbox.receipt().produced != {"metrics": 1}:
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    session.CHILDREN_TIMEOUT_S = 60  # a busy machine needs longer for the imports alone
    run.finish(timeout_s=240)
"""


def test_what_killed_workers_have_left_is_sent_before_the_completion(valkey: Any, tmp_path: Path) -> None:
    """The points in the spool of a child, and its inferred end, arrive before the job can look complete."""
    environ = {"TRAINWIRE_SPOOL_DIR": str(tmp_path / "spool"), "TRAINWIRE_SETTLE_S": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED_WORKER, valkey.url]
    subprocess.run(command, env=os.environ | environ, check=True, timeout=180, capture_output=True)
    points = [body.points for _, body in valkey.entries("metrics") if body.points]
    assert [[point.values for point in each] for each in points] == [[{"loss": 1.0}]]
    of_child, of_run = valkey.completions()
    assert of_child.of is not None
    assert of_child.produced == {"metrics": 1}
    assert (of_run.of, of_run.status) == (None, "completed")


def test_a_spool_that_cannot_be_read_does_not_disturb_the_end(
    valkey: Any, settings: TrainerSettings, tmp_path: Path
) -> None:
    """A folder that the system refuses to read (here by its long name) raises nothing; the completion arrives."""
    folder = tmp_path / ("x" * 300)
    with Run(42, settings=replace(settings, spool=SpoolSettings(folder=folder))) as run:
        run.log("hello")
    assert [body.status for body in valkey.completions()] == ["completed"]


def test_an_interrupt_while_children_are_sent_for_keeps_the_completion(
    valkey: Any, spooling: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second ctrl-C at the end reaches the training; the completion is in the buffer, and is sent."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = Run(42, settings=spooling)
    run.log("hello")
    assert spooling.spool.folder is not None
    (spooling.spool.folder / "42-0-child").mkdir(parents=True)
    monkeypatch.setattr("trainwire.ingest.sending.session.send_for_children", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    wait_until(valkey.completions, "the completion")
