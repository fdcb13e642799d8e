"""Everything that writes to a process's descriptors 1 and 2 is captured: real processes, with no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, cast

import pytest

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60

BEGIN = """
import ctypes, faulthandler, json, logging, os, subprocess, sys, threading, time, warnings
logging.basicConfig(level=logging.INFO, format="%(message)s")  # holds the stderr from before the capture
from trainwire import Run, TrainerSettings
from trainwire.ingest.settings.trainer_settings import Timing
from tests.unit.ingest.conftest import bodies_of

timing = Timing(first_backoff_s=30, longest_backoff_s=30)
settings = TrainerSettings(redis_url="redis://127.0.0.1:1/0", timing=timing)
logging.getLogger("trainwire").setLevel(logging.CRITICAL)

def begin():
    run = Run(42, settings=settings)
    run.capture_output()
    return run

def end(run):
    run._capture.stop()
    lines = [(body.log_type, line) for body in bodies_of(run._session.outbox, "logs") for line in body.lines]
    with open(sys.argv[1], "w") as file:
        json.dump(lines, file)
    run.finish(timeout_s=0)

"""
SOURCES = {
    "print": 'print("IT")',
    "sys.__stdout__": 'sys.__stdout__.write("IT\\n")',
    "sys.stdout.buffer": 'sys.stdout.buffer.write(b"IT\\n")',
    "a logging handler from before": 'logging.info("IT")',
    "a stream from before": 'before.write("IT\\n")',
    "a warning": 'warnings.showwarning = lambda text, *_: sys.stderr.write(f"{text}\\n"); warnings.warn("IT")',
    "os.write": 'os.write(1, b"IT\\n")',
    "a subprocess": 'subprocess.run(["echo", "IT"])',
    "a shell": 'os.system("echo IT >&2")',
    "C code": 'ctypes.CDLL(None).puts(b"IT")',
    "C code that buffers": 'ctypes.CDLL(None).printf(b"IT\\n")',
    "a thread": 't = threading.Thread(target=print, args=("IT",)); t.start(); t.join()',
    "a forked child": 'pid = os.fork()\nif not pid:\n    print("IT"); os._exit(0)\nos.waitpid(pid, 0)',
    "multiprocessing": (
        "import multiprocessing\n"
        'p = multiprocessing.get_context("fork").Process(target=print, args=("IT",)); p.start(); p.join()'
    ),
}


class Ended:
    """The shown output and the log of a process that has ended."""

    def __init__(self, script: str, folder: Path, **options: Any) -> None:
        result = folder / "lines.json"
        # From Python 3.12 on, a fork beside threads is a warning, which would be one more line.
        fork = "ignore:This process:DeprecationWarning"
        command = [sys.executable, "-W", fork, "-c", BEGIN + script, str(result)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process: Any = subprocess.run(command, env=environment, timeout=TIMEOUT_S, check=False, **options)
        self.shown = cast("tuple[bytes, bytes]", (self.process.stdout, self.process.stderr))
        self.lines = [tuple(line) for line in json.loads(result.read_text())] if result.exists() else []


def test_every_source_is_shown_and_logged(tmp_path: Path) -> None:
    """Python's streams, descriptors, C code, subprocesses, threads and forks: each line is there once."""
    body = "before = sys.stdout\nrun = begin()\n"
    for name, code in SOURCES.items():
        body += code.replace("IT", name.replace(" ", "-")) + "\n"
    ended = Ended(body + "end(run)\nprint('after the end')\n", tmp_path)
    named = [name.replace(" ", "-") for name in SOURCES]
    assert sorted(line for _, line in ended.lines) == sorted(named)
    types = {line: log_type for log_type, line in ended.lines}
    assert {line for line, log_type in types.items() if log_type == "stderr"} == {
        "a-logging-handler-from-before",
        "a-warning",
        "a-shell",
    }
    shown = ended.shown[0] + ended.shown[1]
    assert sorted(shown.decode().splitlines()) == sorted([*named, "after the end"])


def test_a_terminal_stays_a_terminal(tmp_path: Path) -> None:
    """Where the output is a terminal, progress bars and colours find one, of the same size."""
    master, terminal = os.openpty()
    os.set_blocking(master, False)
    termios.tcsetwinsize(terminal, (33, 111))
    script = (
        "run = begin()\n"
        "print(os.isatty(1), os.isatty(2), tuple(os.get_terminal_size(1)))\n"
        "sys.stdout.write('10%\\r'); sys.stdout.write('20%\\r\\n')\n"
        "end(run)\n"
    )
    try:
        ended = Ended(script, tmp_path, stdout=terminal, stderr=terminal, start_new_session=True)
        shown = os.read(master, 1000)
    finally:
        os.close(terminal)
        os.close(master)
    assert ended.lines == [("stdout", "True True (111, 33)"), ("stdout", "20%")]
    assert shown == b"True True (111, 33)\r\n10%\r20%\r\r\n"


def test_code_that_holds_the_global_lock_is_not_held_up(tmp_path: Path) -> None:
    """C code may print megabytes while no thread of Python can run: it is shown, logged, and does not hang."""
    script = (
        "run = begin()\n"
        "python = ctypes.PyDLL(None)  # keeps the lock\n"
        "python.system(b'yes 0123456789abcde | head -n 100000')\n"
        "end(run)\n"
    )
    ended = Ended(script, tmp_path)
    assert ended.shown[0] == b"0123456789abcde\n" * 100_000
    assert [line for _, line in ended.lines if "pipe" not in line] == ["0123456789abcde"] * 100_000


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ("os.close(1)", "elsewhere"),  # closed, or another file of this process, which may get the free number
        ("sys.stdout.close()", "as before"),  # Python leaves the descriptor open
        ("os.dup2(os.open(os.devnull, os.O_WRONLY), 1)", "/dev/null"),
    ],
)
def test_a_descriptor_that_the_training_changed_is_left_alone(tmp_path: Path, change: str, outcome: str) -> None:
    """A descriptor that was closed, or leads elsewhere since, stays as the training left it."""
    script = (
        "def place():\n"
        "    try: return os.readlink('/proc/self/fd/1')\n"
        "    except OSError: return 'closed'\n"
        f"before = place()\nrun = begin()\nprint('first')\nsys.stdout.flush()\n{change}\nend(run)\n"
        "names = {before: b'as before', '/dev/null': b'/dev/null'}\n"
        "os.write(2, names.get(place(), b'elsewhere'))\n"
    )
    ended = Ended(script, tmp_path)
    assert ended.lines == [("stdout", "first")]
    assert ended.shown == (b"first\n", outcome.encode())


@pytest.mark.parametrize("closed", ["1", "2", "both"])
def test_a_process_without_outputs_runs(tmp_path: Path, closed: str) -> None:
    """Outputs that are closed from the start stay closed; the other one is captured."""
    script = "run = begin()\nprint('out')\nprint('err', file=sys.stderr) if sys.stderr else None\nend(run)\n"

    def close() -> None:
        for descriptor in (1, 2):
            if closed in (str(descriptor), "both"):
                os.close(descriptor)

    ended = Ended(script, tmp_path, preexec_fn=close)
    assert ended.process.returncode == 0
    wanted = {"1": [("stderr", "err")], "2": [("stdout", "out")], "both": []}
    assert ended.lines == wanted[closed]


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), 9)", "os.execvp('echo', ['echo', 'new'])"])
def test_what_was_printed_before_a_sudden_end_is_shown(tmp_path: Path, how: str) -> None:
    """The relay outlives the training for as long as there is output to show."""
    ended = Ended(f"run = begin()\nprint('x' * 500_000)\nprint('last')\n{how}\n", tmp_path)
    lines = ended.shown[0].splitlines()
    assert lines[:2] == [b"x" * 500_000, b"last"]
    assert lines[2:] == ([b"new"] if "exec" in how else [])


def test_captures_within_captures_end_in_any_order(tmp_path: Path) -> None:
    """Two runs of one process both log its output while they last; then the original outputs are restored."""
    script = (
        "first, second = begin(), Run(43, settings=settings)\n"
        "print('one')\n"
        "second.capture_output()\n"
        "print('two')\n"
        "first.finish(timeout_s=0)\n"
        "print('three')\n"
        "end(second)\n"
        "print('four')\n"
    )
    ended = Ended(script, tmp_path)
    assert ended.lines == [("stdout", "two"), ("stdout", "three")]
    assert ended.shown[0] == b"one\ntwo\nthree\nfour\n"


def test_without_a_relay_python_is_captured_and_one_warning_names_the_cause(tmp_path: Path) -> None:
    """Where no process can be started, the output of Python is still logged."""
    script = (
        "logging.getLogger('trainwire').setLevel(logging.WARNING)\n"
        "sys.executable = '/nowhere/python'\n"
        "run = begin()\nprint('from Python')\nos.write(1, b'from elsewhere\\n')\nend(run)\n"
    )
    ended = Ended(script, tmp_path)
    assert ended.lines == [("stdout", "from Python")]
    assert ended.shown[0].splitlines() in (
        [b"from Python", b"from elsewhere"],
        [b"from elsewhere", b"from Python"],
    )
    assert ended.shown[1].count(b"no relay process, or no thread for it, could be started") == 1
