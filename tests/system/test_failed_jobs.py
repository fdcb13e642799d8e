"""Failed trainings under a real stack: `status` and the log have the error."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.system.test_up import Terminal, ended

RAISES = "def load():\n    raise ValueError('no data for epoch 3')\n"
IN_A_RUN = (
    "from trainwire import Run\nwith Run.from_env() as run:\n    run.log('before')\n    run.metric(loss=0.5)\n"
)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Give a user with a running stack."""
    with ended(Terminal(tmp_path_factory.mktemp("failed"))) as made:
        made.env["LOKI_ENABLED"] = "false"
        made.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
        yield made


def status_of(terminal: Terminal, job: int) -> dict[str, str]:
    """Wait until the job has failed; return the lines of `trainwire status` by their names."""

    def has_failed() -> bool:
        return (terminal.document("status", str(job)) or {}).get("status") == "failed"

    terminal.wait_for(has_failed)
    # After the status come the sum and warnings, which have no name.
    lines = terminal.run("status", str(job)).stdout.splitlines()
    return {line[:16].strip(): line[16:] for line in lines}


def log_of(terminal: Terminal, job: int, text: str) -> str:
    """Return the log of a job as it is shown, once it has this text."""
    terminal.wait_for(lambda: text in terminal.run("logs", str(job)).stdout)
    return terminal.run("logs", str(job)).stdout


def launch(terminal: Terminal, job: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script under the launcher."""
    return terminal.run("run", "--job-id", str(job), "--", sys.executable, "-c", script)


def test_a_training_that_raises(terminal: Terminal) -> None:
    """A script with a `Run` that raises under the launcher has exit code 1, the exception and the traceback."""
    ran = launch(terminal, 1, f"{RAISES}{IN_A_RUN}    load()\n")
    assert ran.returncode == 1
    assert "ValueError: no data for epoch 3" in ran.stderr
    status = status_of(terminal, 1)
    assert (status["status"], status["exit code"]) == ("failed, attempt 1", "1")
    assert status["error"] == "ValueError: no data for epoch 3"
    log = log_of(terminal, 1, "stderr ValueError:")
    assert "stdout before" in log
    assert (log.count("Traceback (most recent call last):"), log.count("TRACEBACK:")) == (1, 0)
    traceback = log[log.index("Traceback") :]
    assert "in load" in traceback
    assert "ValueError: no data for epoch 3" in traceback


def test_a_training_that_raises_without_a_launcher(terminal: Terminal) -> None:
    """A script run without the launcher has the same status, except the exit code, which it cannot know."""
    env = dict(re.findall(r"export (\w+)='?([^'\n]+)'?", terminal.run("env").stdout)) | {"TRAINWIRE_JOB_ID": "2"}
    command = [sys.executable, "-c", f"{RAISES}{IN_A_RUN}    load()\n"]
    ran = subprocess.run(command, env=terminal.env | env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    status = status_of(terminal, 2)
    assert (status["status"], status["error"]) == ("failed, attempt 1", "ValueError: no data for epoch 3")
    assert "exit code" not in status
    assert "in load" in log_of(terminal, 2, "TRACEBACK:")


def test_a_training_without_a_run_that_raises(terminal: Terminal) -> None:
    """A script without the SDK has its last line as the error, and its traceback in the log."""
    ran = launch(terminal, 3, f"{RAISES}print('before')\nload()\n")
    assert ran.returncode == 1
    status = status_of(terminal, 3)
    assert (status["status"], status["exit code"]) == ("failed, attempt 1", "1")
    assert status["error"] == "exit code 1: ValueError: no data for epoch 3"
    log = log_of(terminal, 3, "ValueError")
    assert "stderr Traceback (most recent call last):" in log
    assert "in load" in log


def test_a_training_that_is_killed(terminal: Terminal) -> None:
    """After SIGKILL, as from the OOM killer: exit code 137, the signal's name, and the lines logged before."""
    ran = launch(terminal, 4, f"import os\n{IN_A_RUN}    os.kill(os.getpid(), 9)\n")
    assert ran.returncode == 137
    status = status_of(terminal, 4)
    assert (status["status"], status["exit code"]) == ("failed, attempt 1", "137")
    assert status["error"] == "killed by signal SIGKILL"


def test_a_training_that_exits_with_a_code(terminal: Terminal) -> None:
    """After `sys.exit(3)`, with a `Run` or without, the job has the code and the last lines of stderr."""
    ran = launch(terminal, 5, "import sys\nprint('disk is full', file=sys.stderr)\nsys.exit(3)\n")
    assert ran.returncode == 3
    status = status_of(terminal, 5)
    assert (status["status"], status["exit code"]) == ("failed, attempt 1", "3")
    assert status["error"] == "exit code 3: disk is full"
    assert "stderr disk is full" in log_of(terminal, 5, "disk is full")
    assert launch(terminal, 6, f"import sys\n{IN_A_RUN}    sys.exit(3)\n").returncode == 3
    status = status_of(terminal, 6)
    assert (status["exit code"], status["error"]) == ("3", "exit code 3")
