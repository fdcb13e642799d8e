"""Commands that draw on a terminal, under a launcher with and without one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainwire.ingest.launcher.keeper import is_stopped

ROOT = Path(__file__).parents[3]
AT_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
BAR = (
    "import os, sys\n"
    "assert sys.stderr.isatty()\n"
    "width = os.get_terminal_size(2).columns\n"
    "for done in range(101):\n"
    "    sys.stderr.write(f'\\r\\x1b[K{done:3}%'.ljust(width))\n"
    "sys.stderr.write('\\n')\n"
    "print('trained')\n"
)


@contextmanager
def launched(valkey: Any, *command: str, at_a_terminal: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Start the launcher with --tty, in a pipe or in a terminal: text written to its stdin is typed."""
    ours = [
        sys.executable,
        "-m",
        "trainwire.ingest",
        "--job-id",
        "42",
        "--redis-url",
        valkey.url,
        "--tty",
        "--",
        *command,
    ]
    sized = ["sh", "-c", 'stty rows 40 cols 100 && exec "$@"', "sh", *ours]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, *sized] if at_a_terminal else ours,
        env={**clean, "PYTHONPATH": str(ROOT), "TRAINWIRE_SETTLE_S": "0.1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def launch(valkey: Any, *command: str, at_a_terminal: bool = False) -> tuple[int, bytes]:
    """Run the launcher to its end; return its exit code and its output."""
    with launched(valkey, *command, at_a_terminal=at_a_terminal) as process:
        shown, _ = process.communicate(timeout=120)
        return process.returncode, shown


@pytest.mark.parametrize(("at_a_terminal", "width"), [(False, 80), (True, 100)])
def test_a_progress_bar_behaves(valkey: Any, at_a_terminal: bool, width: int) -> None:
    """The bar is drawn as wide as the person's terminal, every state is shown, and the last one is logged."""
    code, shown = launch(valkey, sys.executable, "-c", BAR, at_a_terminal=at_a_terminal)
    assert code == 0
    assert shown.count(b"\r\x1b[K") == 101
    assert [line.rstrip() for line in valkey.lines("stdout")] == ["100%", "trained"]
    assert valkey.lines("stdout")[0] == "100%".ljust(width - len("\r\x1b[K"))


def test_both_streams_are_in_exact_order(valkey: Any) -> None:
    """A terminal has one output: both streams are shown and logged in their order."""
    code, shown = launch(valkey, "sh", "-c", "for n in $(seq 100); do echo out $n; echo err $n >&2; done")
    expected = [f"{stream} {n}" for n in range(1, 101) for stream in ("out", "err")]
    assert (code, shown.decode().splitlines()) == (0, expected)
    assert valkey.lines("stdout") == expected


def test_nothing_at_the_end_is_lost(valkey: Any) -> None:
    """Output still in the terminal when the command ends is read, and its bytes are shown unchanged."""
    code, shown = launch(valkey, "sh", "-c", "seq 20000; printf tail; exit 3")
    assert code == 3
    assert shown == b"".join(b"%d\n" % n for n in range(1, 20_001)) + b"tail"
    assert valkey.lines("stdout") == [*map(str, range(1, 20_001)), "tail"]
    assert valkey.completions()[0].error_message == "exit code 3: tail"


def test_ctrl_c_reaches_the_command_once(valkey: Any, until: Callable[..., None]) -> None:
    """Typed at the person's terminal it interrupts the command, whose answer is the result."""
    script = (
        "import signal, sys, time\n"
        "heard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
        "print('ready')\n"
        "while not heard: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "print(len(heard), 'heard')\n"
        "sys.exit(5)\n"
    )
    with launched(valkey, sys.executable, "-c", script, at_a_terminal=True) as process:
        until(lambda: valkey.lines("stdout") == ["ready"])
        assert process.stdin is not None
        process.stdin.write(b"\x03")
        assert process.wait(120) == 5
    assert valkey.lines("stdout") == ["ready", "1 heard"]


def test_a_new_window_size_reaches_the_command(valkey: Any) -> None:
    """The command gets a signal for the new size of the user's terminal, and reads the size."""
    script = (
        "import os, signal, time\n"
        "sizes = [tuple(os.get_terminal_size(1))]\n"
        "signal.signal(signal.SIGWINCH, lambda *_: sizes.append(tuple(os.get_terminal_size(1))))\n"
        "os.system('stty cols 120 < /dev/tty')\n"
        "deadline = time.monotonic() + 60\n"
        "while sizes[-1] != (120, 40) and time.monotonic() < deadline: time.sleep(0.01)\n"
        "print(sizes[0], sizes[-1])\n"
    )
    launch(valkey, sys.executable, "-c", script, at_a_terminal=True)
    assert valkey.lines("stdout") == ["(100, 40) (120, 40)"]


def test_what_is_typed_reaches_the_command(valkey: Any, until: Callable[..., None]) -> None:
    """A question can be answered: stdin and the controlling terminal are the person's own."""
    script = "echo ready; read answer; echo got $answer; tty"
    with launched(valkey, "sh", "-c", script, at_a_terminal=True) as process:
        until(lambda: valkey.lines("stdout") == ["ready"])
        assert process.stdin is not None
        process.stdin.write(b"yes\n")
        assert process.wait(120) == 0
    _, answer, terminal = valkey.lines("stdout")
    assert answer == "got yes"
    assert re.fullmatch(r"/dev/(pts/|tty)\w+", terminal)


def test_a_grandchild_with_the_terminal_open_does_not_hang_the_end(valkey: Any) -> None:
    """Background processes of the command do not keep the launcher from ending."""
    assert launch(valkey, "sh", "-c", "sleep 200 & echo done") == (0, b"done\n")
    assert valkey.lines("stdout") == ["done"]


def test_an_unknown_command_is_127(valkey: Any) -> None:
    """A command that is not there ends as without a terminal."""
    assert launch(valkey, "no-such-trainer") == (127, b"")


def test_trainwire_run_has_the_same_options(valkey: Any) -> None:
    """`trainwire run --tty --fold-repeats` gives a terminal and folds."""
    ours = [sys.executable, "-m", "trainwire", "run", "--job-id", "42", "--tty", "--fold-repeats", "--"]
    command = ["sh", "-c", "test -t 2 && yes nan | head -n 5"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0.1"}
    done = subprocess.run([*ours, *command], env=env, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"nan\n" * 5)
    assert valkey.lines("stdout") == ["nan", "trainwire: the last line came 4 more times"]


@pytest.mark.parametrize("options", [(), ("--tty",)], ids=["pipes", "tty"])
def test_ctrl_z_stops_the_command_and_its_launcher(
    valkey: Any, until: Callable[..., None], options: tuple[str, ...]
) -> None:
    """The shell goes on, and after `fg` so do both, without a loss; terminals stay terminals."""
    script = (
        "import os, sys\n"
        "print(os.getpid(), os.getppid(), os.isatty(1), flush=True)\n"
        "print(sys.stdin.readline().strip())\n"
    )
    ours = [
        sys.executable,
        "-m",
        "trainwire.ingest",
        "--job-id",
        "42",
        *options,
        "--",
        sys.executable,
        "-c",
        script,
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, "bash", "--norc", "--noprofile", "-i"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0.1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(f"{shlex.join(ours)}\n".encode())
        until(lambda: valkey.lines("stdout"))
        *pids, is_terminal = valkey.lines("stdout")[0].split()
        assert is_terminal == str(bool(options))
        process.stdin.write(b"\x1a")
        until(lambda: [is_stopped(int(pid)) for pid in pids] == [True, True])
        process.stdin.write(b"fg\n")
        until(lambda: [is_stopped(int(pid)) for pid in pids] == [False, False])
        process.stdin.write(b"on\n")
        until(valkey.completions)
        assert [valkey.lines("stdout")[-1], valkey.completions()[0].exit_code] == ["on", 0]
    finally:
        process.kill()
        process.communicate()
