"""Hooks: from a process of the training, over the launcher's socket, into its run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_until
from trainwire.ingest.hooks.carrier.trainwire_hooks import channel
from trainwire.ingest.hooks.caught import Caught, HookedProcess
from trainwire.ingest.hooks.hooks import CatchOptions, Hooks
from trainwire.ingest.hooks.listener import HookListener
from trainwire.testing import RecordedRun

LOG_LOSS = """
from trainwire_hooks import channel
for step in range({count}):
    channel.send({{"type": "metrics", "by": "test", "step": step, "values": {{"loss": step / 2}}}})
"""


@pytest.fixture
def run() -> RecordedRun:
    """Give a run in memory."""
    return RecordedRun(1)


@pytest.fixture
def caught(run: RecordedRun) -> Caught:
    """Give the values of hooks, taken into the run."""
    return Caught(run, lambda _: run)


@pytest.fixture
def listener(tmp_path: Path, caught: Caught) -> Iterator[HookListener]:
    """Give a listener whose socket is in the test's folder."""
    listener = HookListener(tmp_path, caught)
    yield listener
    listener.close(1.0)


def python(script: str, listener: HookListener, **environ: str) -> subprocess.Popen[bytes]:
    """Start a Python without trainwire's packages, with the hooks in it."""
    base = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environ
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**base, **listener.environment(environ)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def output_of(process: subprocess.Popen[bytes]) -> str:
    """Return what a process printed, once it has ended well."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output.decode()
    return output.decode()


def test_all_records_of_an_ended_process_are_taken(run: RecordedRun, listener: HookListener) -> None:
    """More than the socket holds arrives, in order, although the process ends right after its last record."""
    output_of(python(LOG_LOSS.format(count=20_000), listener))
    listener.close(10)
    assert [point.values["loss"] for point in run.points] == [step / 2 for step in range(20_000)]


def test_a_killed_process_has_sent_all_that_the_socket_took(run: RecordedRun, listener: HookListener) -> None:
    """Records are not held back: after kill -9, those of calls that had returned are there."""
    script = LOG_LOSS.format(count=10) + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    with python(script, listener) as process:
        assert process.wait(60) == -signal.SIGKILL
    listener.close(10)
    assert len(run.points) == 10


def test_forked_processes_send_for_themselves(run: RecordedRun, listener: HookListener) -> None:
    """A child does not write into the connection of its parent."""
    script = """
    import os
    from trainwire_hooks import channel
    for name in ("parent", "child"):
        if name == "child" and os.fork():
            os.wait()
            break
        for step in range(1000):
            channel.send({"type": "metrics", "by": "test", "step": step, "values": {name: 1}})
    """
    output_of(python(script, listener))
    listener.close(10)
    assert sum("parent" in point.values for point in run.points) == 1000
    assert sum("child" in point.values for point in run.points) == 1000


def test_a_training_goes_on_without_its_launcher(listener: HookListener, tmp_path: Path) -> None:
    """Neither a socket that is gone nor one that breaks in the middle raises or waits."""
    script = LOG_LOSS.format(count=10) + "input()\n" + LOG_LOSS.format(count=10) + "print('trained')\n"
    base = listener.environment({})
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, **base}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    listener.close(5)
    (tmp_path / "hooks").unlink()
    output, _ = process.communicate(b"\n", timeout=60)
    assert (process.returncode, output) == (0, b"trained\n")


def test_the_hidden_sitecustomize_runs(listener: HookListener, tmp_path: Path) -> None:
    """A `sitecustomize` of the training's own environment is run as without the hooks."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.flag_of_mine = 42\n")
    script = "import sys, sitecustomize\nprint(sys.flag_of_mine, sitecustomize.__file__)"
    output = output_of(python(script, listener, PYTHONPATH=str(tmp_path / "site")))
    assert output.split() == ["42", str(tmp_path / "site" / "sitecustomize.py")]


def test_a_broken_library_works_as_without_hooks(listener: HookListener, tmp_path: Path, caught: Caught) -> None:
    """An unknown version of a library works; the launcher names it."""
    (tmp_path / "tensorboardX").mkdir()
    (tmp_path / "tensorboardX" / "__init__.py").write_text("")
    (tmp_path / "tensorboardX" / "event_file_writer.py").write_text("class Writer: pass\n")
    script = "from tensorboardX.event_file_writer import Writer\nprint(Writer.__name__)"
    assert output_of(python(script, listener, PYTHONPATH=str(tmp_path))) == "Writer\n"
    listener.close(10)
    assert "the hook into tensorboardX.event_file_writer failed (AttributeError" in str(caught.sentence())


def test_nothing_is_taken_from_a_process_with_a_run_of_its_own(run: RecordedRun, listener: HookListener) -> None:
    """What such a process logs to a library too is not stored twice."""
    output_of(
        python("import trainwire_hooks\ntrainwire_hooks.announce_run()\n" + LOG_LOSS.format(count=3), listener)
    )
    listener.close(10)
    assert run.points == []


def test_values_of_a_replaced_library_are_taken(run: RecordedRun, listener: HookListener) -> None:
    """A library that keeps its values nowhere else reports also in a process with a `Run`."""
    script = LOG_LOSS.format(count=3)
    replaced = "channel.send({'type': 'replaced', 'by': 'test'})\n"
    announced = "import trainwire_hooks\ntrainwire_hooks.announce_run()\nfrom trainwire_hooks import channel\n"
    output_of(python(announced + replaced + script, listener))
    listener.close(10)
    assert len(run.points) == 3


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"wandb": "no"}, "'no' is no mode: write one of mirror, replace, off"),
        ({"wandb": "replace", "hooks": False}, "leave out --no-hooks"),
    ],
)
def test_a_wrong_mode_for_wandb_is_named(options: dict[str, Any], remedy: str) -> None:
    """The error has the mode and what to write instead."""
    with pytest.raises(ValueError, match=remedy):
        CatchOptions(**options)


@pytest.mark.parametrize(("mode", "wandb_mode"), [("mirror", None), ("replace", "disabled"), ("off", None)])
def test_the_mode_for_wandb_is_in_the_environment(run: RecordedRun, mode: str, wandb_mode: str | None) -> None:
    """Only `replace` disables W&B, also where no hook could be installed."""
    hooks = Hooks(run, lambda _: run, None, CatchOptions(wandb=mode), print)
    environment = hooks.environment({})
    hooks.close(0, lambda: False)
    assert (environment["TRAINWIRE_WANDB"], environment.get("WANDB_MODE")) == (mode, wandb_mode)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b"{}\n",
        b'{"type": "metrics"}\n',
        b'{"type": "metrics", "values": {"a": "<b>"}}\n',
        b'{"type": "event", "folder": "x", "data": "%%%"}\n',
        b'{"type": "event", "folder": "x", "data": "/////w=="}\n',
        b'{"type": "params", "values": 3}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_hostile_record_harms_no_other(line: bytes, run: RecordedRun, listener: HookListener) -> None:
    """A record that cannot be read is left out; those after it are taken."""
    script = (
        "import socket, os\ns = socket.socket(socket.AF_UNIX)\ns.connect(os.environ['TRAINWIRE_HOOKS'])\n"
        f"s.sendall({line!r})\n"
    )
    output_of(python(script + LOG_LOSS.format(count=2), listener))
    listener.close(10)
    assert len(run.points) == 2


def test_ranks_report_by_their_own_runs(run: RecordedRun, tmp_path: Path) -> None:
    """A process of rank 3 is told apart from the launcher's."""
    of_rank: dict[int, RecordedRun] = {}
    caught = Caught(run, lambda rank: of_rank.setdefault(rank, RecordedRun(1, rank=rank)))
    listener = HookListener(tmp_path, caught)
    output_of(python(LOG_LOSS.format(count=2), listener, RANK="3", WORLD_SIZE="4"))
    listener.close(10)
    assert [len(of_rank[3].points), len(run.points)] == [2, 0]


def test_a_slow_launcher_costs_memory_up_to_a_bound(
    tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that find no room are counted; the count follows when there is room again."""
    records: list[Mapping[str, Any]] = []
    monkeypatch.setattr(channel, "MAX_WAITING_BYTES", 10_000)
    monkeypatch.setattr(HookedProcess, "take", lambda _, record: records.append(record))
    monkeypatch.setattr(channel, "_channels", [])
    listener = HookListener(tmp_path, caught)
    monkeypatch.setenv("TRAINWIRE_HOOKS", listener.environment({})["TRAINWIRE_HOOKS"])
    try:
        for step in range(30_000):
            channel.send({"type": "metrics", "by": "test", "step": step, "values": {"loss": 1}})
        wait_until(lambda: not channel._channels[0]._waiting, "all is sent", 10)
    finally:
        listener.close(10)
        channel._channels[0].close()
    taken = sum(record["type"] == "metrics" for record in records)
    left_out = sum(record["count"] for record in records if record["type"] == "left out")
    assert taken + left_out == 30_000


@contextmanager
def full_queue(path: Path) -> Iterator[socket.socket]:
    """Yield a listening socket whose queue is full of connections that nobody has accepted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as launcher, ExitStack() as waiting:
        launcher.bind(str(path))
        launcher.listen(1)
        with suppress(BlockingIOError):
            while True:
                other = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                other.setblocking(False)
                other.connect(str(path))
        yield launcher


def test_a_stopped_launcher_with_a_full_queue_blocks_no_training(tmp_path: Path) -> None:
    """Connections that nobody accepts do not block the training; its records arrive once the launcher goes on."""
    with full_queue(tmp_path / "hooks") as launcher:
        sent: list[channel.Channel] = []

        def train() -> None:
            made = channel.Channel(str(tmp_path / "hooks"))
            made.send({"type": "metrics", "step": 1})
            sent.append(made)

        training = threading.Thread(target=train, daemon=True)
        training.start()
        wait_until(lambda: sent, "the training goes on", 10)
        received = b""
        while b"metrics" not in received:
            connection, _ = launcher.accept()
            with connection:
                connection.settimeout(0.2)
                with suppress(TimeoutError):
                    while data := connection.recv(1000):
                        received += data
        lines = [json.loads(line) for line in received.splitlines()]
        assert [line["type"] for line in lines] == ["process", "metrics"]
        wait_until(lambda: sent[0]._thread is None, "the end of the thread", 10)
        sent[0].close()


def test_a_channel_without_a_thread_ends_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system refuses a thread, a record waits for the next one, and closing the channel raises nothing."""
    with full_queue(tmp_path / "hooks") as launcher:

        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("threading.Thread.start", refuse)
        made = channel.Channel(str(tmp_path / "hooks"))
        made.close()
        monkeypatch.undo()
        made = channel.Channel(str(tmp_path / "hooks"))
        assert made._thread is not None
        launcher.close()
        wait_until(lambda: made._thread is None, "the end of the thread", 10)
        made.close()


def test_a_descriptor_that_the_training_closes_is_not_used_again(run: RecordedRun, listener: HookListener) -> None:
    """Its number may be that of a file of the training: nothing is written into that, and it is not closed."""
    script = (
        LOG_LOSS.format(count=3)
        + """
import os
descriptor = channel._channels[0]._socket.fileno()
os.close(descriptor)
own = open("/dev/null", "wb")
assert own.fileno() == descriptor
channel.send({"type": "metrics", "by": "test", "step": 9, "values": {"loss": 9}})
channel._channels[0].close()
own.write(b"still open")
own.close()
"""
    )
    output_of(python(script, listener))
    listener.close(10)
    assert len(run.points) == 3


def test_secrets_among_parameters_are_masked(run: RecordedRun, caught: Caught) -> None:
    """A configuration that a library was given may hold a key; its neighbours are kept."""
    caught.params({"lr": 0.1, "api_key": "abc", "nested": {"password": "x", "url": "https://h/?token=y&v=1"}})
    assert run.params == {
        "lr": 0.1,
        "api_key": "***",
        "nested": {"password": "***", "url": "https://h/?token=***&v=1"},
    }
