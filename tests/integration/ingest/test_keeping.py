"""Launchers that are killed or stopped, or have no streams to write to: their commands go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
TRAINING = (
    "import os, sys\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "for n in range(2000): print('x' * 99, n)\n"
    "print('trained', file=sys.stderr)\n"
    "sys.exit(7)\n"
)


@contextmanager
def launched(
    url: str, *command: str, options: tuple[str, ...] = (), stdout: Any = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the launcher with a command."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")}
    env = {**clean, "PYTHONPATH": str(ROOT), "REDIS_URL": url, "TRAINWIRE_SETTLE_S": "0.1"}
    ours = [sys.executable, "-m", "trainwire.ingest", "--job-id", "42", *options, "--", *command]
    process = subprocess.Popen(
        ours, env=env, bufsize=0, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def keeper_of(pid: int) -> int:
    """Return the process id of the keeper of a launcher."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"keeper.py" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise LookupError(f"process {pid} has no keeper")


@pytest.mark.parametrize("options", [(), ("--tty",)], ids=["pipes", "tty"])
def test_a_killed_launcher_ends_no_command(
    valkey: Any, tmp_path: Path, until: Callable[..., None], options: tuple[str, ...]
) -> None:
    """The command prints on, which is shown, and ends with its own exit code."""
    ended = tmp_path / "ended"
    script = f'"$0" -c "$1"; echo $? >{ended}'
    with launched(valkey.url, "sh", "-c", script, sys.executable, TRAINING, options=options) as launcher:
        assert launcher.stdin is not None
        until(lambda: valkey.lines("stdout") == ["ready"])
        launcher.kill()
        launcher.wait()
        output, errors = launcher.communicate(b"go\n", timeout=120)
        shown = output.decode().splitlines()
        assert [line for line in shown if line.startswith("x")] == [f"{'x' * 99} {n}" for n in range(2000)]
        assert b"trained\n" in (output if options else errors)
        until(lambda: ended.exists() and ended.read_text() == "7\n")
        assert not valkey.completions()


def test_a_script_whose_launcher_was_killed_completes(valkey: Any, until: Callable[..., None]) -> None:
    """A run inside the command goes on to log, and completes."""
    script = (
        "import sys\n"
        "from trainwire import Run\n"
        "with Run.from_env() as run:\n"
        "    run.log('ready')\n"
        "    sys.stdin.readline()\n"
        "    print('x' * 1_000_000)\n"
        "    run.log('trained')\n"
    )
    with launched(valkey.url, sys.executable, "-c", script) as launcher:
        until(lambda: valkey.lines("stdout") == ["ready"])
        launcher.kill()
        launcher.wait()
        assert launcher.communicate(b"go\n", timeout=120)[0] == b"x" * 1_000_000 + b"\n"
        until(lambda: [end.status for end in valkey.completions()] == ["completed"])
        assert valkey.lines("stdout") == ["ready", "trained"]


def test_a_killed_keeper_disturbs_nobody(valkey: Any, until: Callable[..., None]) -> None:
    """The launcher shows and logs the output of its command as before."""
    with launched(valkey.url, sys.executable, "-c", TRAINING) as launcher:
        until(lambda: valkey.lines("stdout") == ["ready"])
        os.kill(keeper_of(launcher.pid), signal.SIGKILL)
        output, errors = launcher.communicate(b"go\n", timeout=120)
        assert (launcher.returncode, output.count(b"\n"), errors) == (7, 2001, b"trained\n")
        assert len(valkey.lines("stdout")) == 2001
        assert valkey.completions()[0].exit_code == 7


def test_nothing_is_left_of_a_launcher_that_ended(valkey: Any, until: Callable[..., None]) -> None:
    """Its keeper ends with it."""
    with launched(valkey.url, "cat") as launcher:
        keeper = 0

        def has_keeper() -> bool:
            nonlocal keeper
            try:
                keeper = keeper_of(launcher.pid)
            except LookupError:
                return False
            return True

        until(has_keeper)
        launcher.communicate(timeout=120)
        until(lambda: not Path(f"/proc/{keeper}").exists())


def test_a_stopped_launcher_does_not_hold_up_its_command_for_ever(
    valkey: Any, tmp_path: Path, until: Callable[..., None]
) -> None:
    """After ten seconds output is shown past it; when it goes on, it logs how much it has missed."""
    ended = tmp_path / "ended"
    script = f"echo ready; read go; yes {'x' * 99} | head -c 1000000; echo >{ended}; read go; echo last; exit 3"
    with (
        (tmp_path / "shown").open("wb") as shown,
        launched(valkey.url, "sh", "-c", script, stdout=shown) as launcher,
    ):
        until(lambda: valkey.lines("stdout") == ["ready"])
        launcher.send_signal(signal.SIGSTOP)
        assert launcher.stdin is not None
        launcher.stdin.write(b"go\n")
        until(ended.exists)
        launcher.send_signal(signal.SIGCONT)
        launcher.communicate(b"go\n", timeout=120)
    assert launcher.returncode == 3
    assert (tmp_path / "shown").stat().st_size == len("ready\n") + 1_000_000 + len("last\n")
    (notice,) = valkey.lines("stderr")
    assert notice.endswith("bytes of output came while the launcher was stopped: shown, and not logged")
    missed = int(notice.split()[1].replace(",", ""))
    bodies: Any = dict(valkey.entries("logs")).values()  # one that Redis took just before the stop is sent twice
    logged = sum(len(line) + 1 for body in bodies for line in body.lines if body.log_type == "stdout")
    assert 0 < missed == len("ready\n") + 1_000_000 + len("last\n") - logged


CLOSED = ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full"]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("command", ["no-such-trainer", "not-executable", "no-interpreter"])
def test_a_command_that_cannot_run_has_the_exit_code_of_a_shell(
    valkey: Any, tmp_path: Path, closed: str, command: str
) -> None:
    """It is 127 or 126, whichever streams are closed, and the job has failed with it, for the stated reason."""
    (tmp_path / "not-executable").write_text("true")
    (tmp_path / "no-interpreter").write_text("#!/no/such/python\n")
    (tmp_path / "no-interpreter").chmod(0o755)
    command = command if command == "no-such-trainer" else f"./{command}"
    wanted = 127 if command == "no-such-trainer" else 126
    script = f'exec "$0" -m trainwire.ingest --job-id 42 -- {command} {closed}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable],
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0.1"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (wanted, b"")
    (completion,) = valkey.completions()
    assert (completion.status, completion.exit_code) == ("failed", wanted)
    assert completion.error_message.startswith(f"cannot run {command!r}: ")
    shown = b"" if "2>" in closed else f"trainwire: {completion.error_message}\n".encode()
    assert done.stderr == shown


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_take_nothing_from_the_log(valkey: Any, tmp_path: Path, closed: str) -> None:
    """A command with closed streams is logged, has its exit code, and keeps its stdin."""
    script = (
        "import os, sys\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "try: os.fstat(0); sys.exit(3)\n"
        "except OSError: sys.exit(4)\n"
    )
    (tmp_path / "train.py").write_text(script)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m trainwire.ingest --job-id 42 -- "$0" train.py {closed}', sys.executable],
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0.1"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == (4 if "<&-" in closed else 3)
    assert (valkey.lines("stdout"), valkey.lines("stderr")) == (["out"], ["err"])
    assert done.stdout == (b"" if ">&-" in closed.split() or ">/dev/full" in closed.split() else b"out\n")


NO_NULL_DEVICE = """
import os
original = os.open
def refuse(path, *arguments, **options):
    if path == os.devnull:
        raise PermissionError(13, "Permission denied")
    return original(path, *arguments, **options)
os.open = refuse
"""


def test_a_command_starts_without_the_null_device(valkey: Any, tmp_path: Path) -> None:
    """In a sandbox whose /dev/null cannot be opened, the command runs, and its output is shown and logged."""
    (tmp_path / "sitecustomize.py").write_text(NO_NULL_DEVICE)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "trainwire.ingest", "--job-id", "42", "--", "echo", "out"],
        env={**os.environ, "PYTHONPATH": path, "REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0.1"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, b"out\n")
    assert valkey.lines("stdout") == ["out"]
