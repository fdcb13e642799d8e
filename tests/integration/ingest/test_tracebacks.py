"""A traceback is logged once, whichever of a script and its launcher, or both, have it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
HEAD = "import subprocess, sys, threading\nfrom trainwire import Run\n"
RUN = "run = Run(42)\n"
BLOCK = "with Run(42) as run:\n    "
CAPTURED_BLOCK = "with Run(42) as run, run.capture_output():\n    "
CHAIN = "def load():\n    try: 1 / 0\n    except ZeroDivisionError as exc: raise ValueError('no data') from exc\n"
PRINTED = {
    "open": (RUN + "raise ValueError('boom')", "ValueError: boom"),
    "block": (BLOCK + "raise ValueError('boom')", "ValueError: boom"),
    "block in a function": (
        "def main():\n    with Run(42) as run: raise ValueError('boom')\nmain()",
        "ValueError: boom",
    ),
    "chain": (RUN + CHAIN + "load()", "ValueError: no data"),
    "chain in a block": (CHAIN + BLOCK + "load()", "ValueError: no data"),
    "raised from outside of the block": (
        "try:\n    with Run(42): 1 / 0\nexcept ZeroDivisionError as exc: raise ValueError('no data') from exc",
        "ZeroDivisionError: division by zero",
    ),
    "group": (BLOCK + "raise ExceptionGroup('two', [ValueError('boom'), KeyError(1)])", "ValueError: boom"),
    "logged by the script": (
        "import logging\ntry:\n    with Run(42): raise ValueError('boom')\n"
        "except ValueError: logging.exception('failed')",
        "ValueError: boom",
    ),
    "thread": (
        RUN + "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
        "ZeroDivisionError: division by zero",
    ),
    "block in a thread": (
        "def work():\n    with Run(42): 1 / 0\nt = threading.Thread(target=work); t.start(); t.join()",
        "ZeroDivisionError: division by zero",
    ),
    "child": (
        RUN + "subprocess.run([sys.executable, '-c', '1 / 0'], check=True)",
        "ZeroDivisionError: division by zero",
    ),
    "multiprocessing": (
        "import multiprocessing\ndef train():\n    run = Run(42); 1 / 0\n"
        "p = multiprocessing.get_context('fork').Process(target=train); p.start(); p.join()",
        "ZeroDivisionError: division by zero",
    ),
    "a prefix of the rank": (
        "def hook(kind, error, trace):\n    import traceback\n"
        "    for text in traceback.format_exception(error):\n"
        "        for line in text.splitlines(): print('[rank0]: ' + line, file=sys.stderr)\n"
        "sys.excepthook = hook\n" + BLOCK + "raise ValueError('boom')",
        "ValueError: boom",
    ),
}
UNPRINTED = {
    "caught": (
        "try:\n    with Run(42) as run: raise ValueError('boom')\nexcept ValueError as exc: print(exc)",
        "ValueError: boom",
    ),
    "a hook that prints nothing": (
        "sys.excepthook = lambda *_: None\n" + BLOCK + "raise ValueError('boom')",
        "ValueError: boom",
    ),
    "killed after the block": (
        "import os\ntry:\n    with Run(42) as run: raise ValueError('boom')\nexcept ValueError: os._exit(3)",
        "ValueError: boom",
    ),
    "stderr leads elsewhere": (
        "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n" + RUN + "raise ValueError('boom')",
        "ValueError: boom",
    ),
}


def run_script(valkey: Any, folder: Path, script: str, *, launcher: tuple[str, ...] = (), **env: str) -> None:
    """Run a script, alone or under a launcher."""
    (folder / "train.py").write_text(HEAD + script)
    (folder / "tmp").mkdir()
    done = subprocess.run(
        [*launcher, sys.executable, str(folder / "train.py")],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")},
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": valkey.url,
            "TRAINWIRE_SETTLE_S": "0.1",
            "TMPDIR": str(folder / "tmp"),
            **env,
        },
        capture_output=True,
        timeout=180,
        check=False,
    )
    # A traceback may show the command, whose path may have a folder "trainwire".
    printed = done.stderr.replace(sys.executable.encode(), b"python")
    assert printed.count(b"trainwire") == 0, done.stderr
    assert not list((folder / "tmp").iterdir())


def times_stored(valkey: Any, error: str) -> tuple[int, int]:
    """Return how many tracebacks with an error are stored as rows, and as captured lines."""
    rows = [end.traceback or "" for end in valkey.completions()]
    lines = valkey.lines("stdout") + valkey.lines("stderr")
    rows += [line for line in lines if line.startswith("TRACEBACK:\n")]
    return sum(error in row for row in rows), sum(line.endswith(error) for line in lines if "\n" not in line)


LAUNCHER = (sys.executable, "-m", "trainwire.ingest", "--job-id", "42", "--")


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, ()) for name in PRINTED), ("open", ("--tty",)), ("chain in a block", ("--tty",))],
)
def test_a_printed_traceback_is_the_captured_one(
    valkey: Any, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    """Under the launcher the traceback of the interpreter is logged line by line, and nothing else."""
    script, error = PRINTED[name]
    run_script(valkey, tmp_path, script, launcher=(*LAUNCHER[:-1], *options, "--"))
    assert times_stored(valkey, error) == (0, 1)


@pytest.mark.parametrize("name", UNPRINTED)
def test_a_traceback_that_is_not_printed_is_a_row(valkey: Any, tmp_path: Path, name: str) -> None:
    """Under the launcher the run's own traceback is logged where the output does not contain it."""
    script, error = UNPRINTED[name]
    run_script(valkey, tmp_path, script, launcher=LAUNCHER)
    assert times_stored(valkey, error) == (1, 0)


def test_a_chain_is_whole(valkey: Any, tmp_path: Path) -> None:
    """Causes and their frames are in the row of a caught exception too."""
    script = CHAIN + "try:\n    with Run(42): load()\nexcept ValueError: pass"
    run_script(valkey, tmp_path, script, launcher=LAUNCHER)
    (row,) = [line for line in valkey.lines("stderr") if line.startswith("TRACEBACK:\n")]
    assert row.count("Traceback (most recent call last):") == 2
    assert "ZeroDivisionError: division by zero" in row
    assert row.endswith("ValueError: no data\n")


@pytest.mark.parametrize(
    ("script", "stored"),
    [
        ("run = Run(42)\nrun.capture_output()\nraise ValueError('boom')", (0, 1)),
        ("import logging\n" + BLOCK + "run.capture_output()\n    raise ValueError('boom')", (1, 0)),
        (
            "import traceback\n" + BLOCK + "run.capture_output()\n    try: raise ValueError('boom')\n"
            "    except ValueError: traceback.print_exc(); raise",
            (0, 1),
        ),
        (
            "class Odd:\n    def write(self, text): return len(text)\n    def flush(self): pass\n"
            "sys.stderr = Odd()\nrun = Run(42)\nrun.capture_output()\nraise ValueError('boom')",
            (0, 1),
        ),
        ("run = Run(42)\nraise ValueError('boom')", (1, 0)),
    ],
    ids=["open", "block", "printed in the block", "a stream without descriptor", "no capture"],
)
def test_a_run_without_a_launcher(valkey: Any, tmp_path: Path, script: str, stored: tuple[int, int]) -> None:
    """A traceback that `capture_output` has logged is not logged again; all others are."""
    run_script(valkey, tmp_path, script)
    assert times_stored(valkey, "ValueError: boom") == stored


def test_a_script_whose_launcher_was_killed_logs_its_traceback(
    valkey: Any, tmp_path: Path, until: Callable[..., None]
) -> None:
    """No other process does: its output is shown, and no longer captured."""
    script = "import os, signal, time\nlauncher = os.getppid(); os.kill(launcher, signal.SIGKILL)\n"
    script += "while os.getppid() == launcher: time.sleep(0.01)\n" + RUN + "raise ValueError('boom')"
    (tmp_path / "train.py").write_text(HEAD + script)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0.1"}
    env["TMPDIR"] = str(tmp_path)
    subprocess.run([*LAUNCHER, sys.executable, str(tmp_path / "train.py")], env=env, check=False)
    until(valkey.completions)
    assert times_stored(valkey, "ValueError: boom") == (1, 0)


def test_a_script_on_another_machine_logs_its_traceback(valkey: Any, tmp_path: Path) -> None:
    """There the launcher's folder does not exist."""
    script = RUN + "raise ValueError('boom')"
    run_script(
        valkey, tmp_path, script, TRAINWIRE_CAPTURED="0-1", TRAINWIRE_JOB_ID="42", TRAINWIRE_TRACEBACKS="/nowhere"
    )
    assert times_stored(valkey, "ValueError: boom") == (1, 0)
