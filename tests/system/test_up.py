"""`trainwire up` as users run it: a real process, real servers, real workers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.processes import ROOT, wait_until
from tests.twins.loki import LokiTwin
from trainwire.stack.folders import hold, published
from trainwire.stack.stack import Stack, StackOptions

READY = "Ctrl-C stops it."
STACK_TIMEOUT_S = 240
"""Ten processes start one after the other: at a load of 40 on two cores, 90 s were too few."""
WITHOUT_WEB = ("postgres", "valkey", "worker", "deliverer", "notifier", "checkpoints", "beat")
PARTS = (*WITHOUT_WEB, "flower", "gateway", "metrics")


class Terminal:
    """A user with an own home folder, and no servers but those they start."""

    def __init__(self, home: Path) -> None:
        self.python: str | Path = sys.executable
        self.cwd = ROOT
        self.data_dir = home / "data" / "trainwire"
        self.output_path = home / "up.txt"
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
        kept.pop("TRAINWIRE_DATA_DIR", None)
        self.env = kept | {
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_STATE_HOME": str(home / "state"),
            "LOKI_ENABLED": "true",  # whether one answers on the port that Loki has by default or not
        }
        self.ups: list[subprocess.Popen[bytes]] = []

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `trainwire up`."""
        with self.output_path.open("ab") as output:
            process = subprocess.Popen(
                [self.python, "-m", "trainwire", "up", *arguments],
                env=self.env,
                cwd=self.cwd,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.ups.append(process)
        return process

    def up(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `trainwire up` and wait until it is ready."""
        process = self.begin(*arguments)
        count = len(self.ups)
        self.wait_for(lambda: self.output().count(READY) == count or process.poll() is not None)
        assert process.poll() is None, self.output()
        return process

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another trainwire command."""
        command = [self.python, "-m", "trainwire", *arguments]
        return subprocess.run(
            command, env=self.env, cwd=self.cwd, capture_output=True, text=True, check=False, timeout=180
        )

    def document(self, *arguments: str) -> Any:
        """Run a command with --json and return its document, None when it failed."""
        done = self.run(*arguments, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def document_of(self, name: str) -> Any:
        """Return a JSON file of the data folder."""
        return json.loads((self.data_dir / name).read_text())

    def output(self) -> str:
        """Return the output of `up` so far."""
        return self.output_path.read_text()

    def part(self, name: str) -> psutil.Process:
        """Return the process of a part."""
        return psutil.Process(json.loads((self.data_dir / "run" / f"{name}.json").read_text())["pid"])

    def wait_for(self, condition: Callable[[], object], timeout_s: float = STACK_TIMEOUT_S) -> None:
        """Wait until `condition()` holds; fail with the output of `up`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Give a user; all their stacks are ended after the test."""
    with ended(Terminal(tmp_path)) as made:
        yield made


@contextmanager
def ended(made: Terminal) -> Iterator[Terminal]:
    """End the stacks of a user after the block."""
    try:
        yield made
    finally:
        for process in made.ups:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(120)
        for pid_path in made.data_dir.glob("run/*.json"):
            psutil.Process(json.loads(pid_path.read_text())["pid"]).kill()


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_command_runs_under_it_and_ctrl_c_ends_it(terminal: Terminal) -> None:
    """up, run, status, logs and env work in several terminals; Ctrl-C exits with 0, and the data is kept."""
    up = terminal.up()
    assert re.search(r"ready: Postgres 127\.0\.0\.1:\d+ · Redis 127\.0\.0\.1:\d+ · Flower http", terminal.output())
    assert (
        "Log rows go to Loki (LOKI_URL is http://localhost:3100; LOKI_ENABLED=false: not to Loki)"
        in terminal.output()
    )
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    ran = terminal.run("run", "--job-id", "42", "--name", "odd", "--", sys.executable, "-c", code)
    assert (ran.returncode, ran.stdout) == (3, "out\n")
    terminal.wait_for(lambda: (terminal.document("status", "42") or {}).get("status") == "failed")
    followed = terminal.run("logs", "42", "-f")
    assert sorted(line.split(" ", 1)[1] for line in followed.stdout.splitlines()[:2]) == [
        "stderr err",
        "stdout out",
    ]
    terminal.wait_for(lambda: _is_complete(terminal, 42))
    status = terminal.document("status", "42")
    assert (status["name"], status["exit_code"], status["completeness"]["state"]) == ("odd", 3, "complete")
    env = terminal.run("env").stdout
    metrics = re.search(r"METRICS_URL=(\S+)", env)
    assert metrics is not None
    assert f"Prometheus finds metrics at {metrics[1]}\n" in terminal.output()
    exported = requests.get(metrics[1], timeout=60).text
    assert 'trainwire_store_up{store="postgres"} 1.0' in exported
    assert 'trainwire_jobs{status="failed"} 1.0' in exported
    flower, gateway = (re.search(rf"{name}_URL=(\S+)", env) for name in ("FLOWER", "GATEWAY"))
    assert flower is not None
    assert gateway is not None
    assert requests.get(f"{gateway[1]}/session", timeout=60).json()["flower_url"] == flower[1]
    secret = re.search(r"trainwire:([^@]+)@", env)
    assert secret is not None
    assert secret[1] not in terminal.output()
    processes = [terminal.part(name) for name in PARTS]
    up.send_signal(signal.SIGINT)
    assert up.wait(120) == 0, terminal.output()
    assert [process for process in processes if not is_gone(process)] == []
    assert terminal.output().endswith(f"stopped; the data is in {terminal.data_dir}\n")
    assert "no trainwire is running" in terminal.run("jobs").stderr
    terminal.env["LOKI_ENABLED"] = "false"
    terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    assert "Log rows end in Postgres (LOKI_ENABLED is false)" in terminal.output()
    assert [job["id"] for job in terminal.document("jobs")] == [42]


def test_the_gateway_shows_its_callbacks(terminal: Terminal) -> None:
    """A callback is stored by the workers and shown; a killed gateway is started again."""
    terminal.up("--no-flower", "--no-metrics", "--concurrency", "1")
    found = re.search(r"GATEWAY_URL=(\S+)", terminal.run("env").stdout)
    assert found is not None
    url = found[1]
    assert f"See your trainings at {url}" in terminal.output()
    end = {"status": "completed", "exit_code": 0, "final_metrics": {"loss": 0.0}}
    assert requests.post(f"{url}/jobs/5/callback/completion", json=end, timeout=60).status_code == 202

    def shown() -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{url}/jobs/5", timeout=60).json()
        return answer

    terminal.wait_for(lambda: shown().get("status") == "completed")
    assert shown()["final_metrics"] == {"loss": 0.0}
    terminal.part("gateway").kill()
    terminal.wait_for(lambda: "gateway: started again" in terminal.output())
    assert shown()["status"] == "completed"


def test_parts_that_die_come_back(terminal: Terminal) -> None:
    """After SIGKILL of the worker and of both servers each is started again and reported, and work goes on."""
    terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    for name in ("worker", "valkey", "postgres"):
        killed = terminal.part(name)
        killed.kill()
        terminal.wait_for(lambda name=name: f"{name}: started again" in terminal.output())  # type: ignore[misc]
        assert f"{name}: killed by SIGKILL, starting it again" in terminal.output()
        assert terminal.part(name) != killed
    ran = terminal.run("run", "--job-id", "1", "--", sys.executable, "-c", "print('still here')")
    assert ran.returncode == 0
    terminal.wait_for(lambda: (terminal.document("status", "1") or {}).get("status") == "completed")
    terminal.wait_for(lambda: "still here" in terminal.run("logs", "1").stdout)


def test_two_stacks_that_start_at_once_have_their_own_addresses(tmp_path: Path) -> None:
    """Two first starts that compete for the default ports each use and record addresses of their own servers."""
    terminals = [Terminal(tmp_path / name) for name in ("one", "two")]
    with ExitStack() as ends:
        for terminal in terminals:
            terminal.output_path.parent.mkdir()
            ends.enter_context(ended(terminal))
            terminal.begin("--no-flower", "--concurrency", "1")
        for terminal in terminals:
            terminal.wait_for(lambda terminal=terminal: READY in terminal.output())  # type: ignore[misc]
        addresses = [dict(re.findall(r"(\w+)_URL=(\S+)", terminal.run("env").stdout)) for terminal in terminals]
        assert {*addresses[0]} == {*addresses[1]} == {"DATABASE", "REDIS", "GATEWAY", "METRICS"}
        assert not {*addresses[0].values()} & {*addresses[1].values()}
        for terminal, address in zip(terminals, addresses, strict=True):
            for name in ("gateway", "metrics"):
                port = int(address[name.upper()].split(":")[2].split("/")[0])
                assert port in {one.laddr.port for one in terminal.part(name).net_connections("tcp")}


def test_a_slow_gateway_is_announced_when_it_is_ready(
    tmp_path: Path, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stack is ready before a slow gateway, whose address is printed only once it answers."""
    monkeypatch.setattr("trainwire.stack.stack.WEB_READY_TIMEOUT_S", 0.01)
    output: list[str] = []
    environ = {**os.environ, "DATABASE_URL": database_url, "REDIS_URL": redis_url, "XDG_STATE_HOME": str(tmp_path)}
    options = StackOptions(tmp_path, concurrency=1, with_flower=False, with_metrics=False)
    with hold(tmp_path):
        stack = Stack(options, environ, output.append)
        try:
            stack.start()
            assert (stack.late, stack.address.gateway_url) == (["gateway"], None)
            assert any("gateway: still starting after 0.01 s (log: " in line for line in output)
            threading.Thread(target=stack.watch).start()
            wait_until(lambda: stack.late == [], "the gateway", 120)
            wait_until(lambda: f"gateway: ready at {stack.address.gateway_url}" in output, "its address")
            assert (published(tmp_path) or {})["gateway_url"] == stack.address.gateway_url
            assert requests.get(f"{stack.address.gateway_url}/healthz", timeout=60).status_code == 200
        finally:
            stack.request_stop()
            stack.stop()


def test_a_second_up_is_refused(terminal: Terminal) -> None:
    """One folder has one stack: the second gets the pid of the first in its error, and the first goes on."""
    first = terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    second = terminal.run("up")
    assert second.returncode == 1
    assert second.stderr == (
        f"trainwire: trainwire is running already in {terminal.data_dir} (pid {first.pid}): "
        "use it, stop it, or choose another folder with --data-dir\n"
    )
    assert first.poll() is None


def test_up_starts_again_in_a_shell_with_its_exports(terminal: Terminal) -> None:
    """In a shell with the exports of an ended stack, `up` starts that stack with its data."""
    first = terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    ran = terminal.run("run", "--job-id", "7", "--", sys.executable, "-c", "print('before')")
    assert ran.returncode == 0
    exports = re.findall(r"export (\w+)=(\S+)", terminal.run("env").stdout)
    terminal.wait_for(lambda: (terminal.document("status", "7") or {}).get("status") == "completed")
    first.kill()
    first.wait()
    terminal.env |= {name: value.strip("'") for name, value in exports}
    terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    for part, variable in (("postgres", "DATABASE_URL"), ("valkey", "REDIS_URL")):
        output = f"{part}: {variable} is from `trainwire env` of {terminal.data_dir}: starting our own server\n"
        assert output in terminal.output()
    assert [job["id"] for job in terminal.document("jobs")] == [7]


def test_a_second_ctrl_c_kills(terminal: Terminal) -> None:
    """A second Ctrl-C kills all parts at once, and no process is left."""
    up = terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    processes = [terminal.part(name) for name in WITHOUT_WEB]
    terminal.part("worker").suspend()  # an orderly stop waits ten seconds for it
    up.send_signal(signal.SIGINT)
    terminal.wait_for(lambda: "stopping" in terminal.output())
    up.send_signal(signal.SIGINT)
    assert up.wait(120) == 130, terminal.output()
    assert [process for process in processes if not is_gone(process)] == []


def test_orphans_of_a_killed_up_are_stopped(terminal: Terminal) -> None:
    """After SIGKILL of `up` the next one first stops the remaining processes, and has all data."""
    first = terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    orphans = [terminal.part(name) for name in WITHOUT_WEB]
    first.kill()
    first.wait()
    assert [orphan for orphan in orphans if is_gone(orphan)] == []
    assert "no trainwire is running" in terminal.run("jobs").stderr
    terminal.up("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    assert [orphan for orphan in orphans if not is_gone(orphan)] == []
    stopped = re.findall(r"(\w+): stopped a leftover of a killed `trainwire up`", terminal.output())
    assert sorted(stopped) == sorted(WITHOUT_WEB)


def test_run_without_a_stack_still_trains(terminal: Terminal) -> None:
    """Without a stack the command runs, its exit code is returned, and one sentence names the command to type."""
    ran = terminal.run(
        "run",
        "--job-id",
        "5",
        "--finish-timeout-s",
        "0.5",
        "--",
        sys.executable,
        "-c",
        "print('trained'); exit(4)",
    )
    assert (ran.returncode, ran.stdout) == (4, "trained\n")
    assert ran.stderr.count("\n") == 1
    assert "no trainwire is running: this run is kept in " in ran.stderr
    assert re.search(
        r"; type `TRAINWIRE_SPOOL_DIR=\S+ trainwire up`, now or later, to store and see it\n", ran.stderr
    )


TRAINING = """
import sys, time
from trainwire import Run
with Run(job_id=int(sys.argv[1]), name="digits", params={"lr": 1e-3}) as run:
    run.log("warming up")
    for step in range(int(sys.argv[2])):
        run.metric(step=step, loss=1 / (step + 1), accuracy=step / 50)
        time.sleep(float(sys.argv[3]))
"""


def _train(terminal: Terminal, job: int, steps: int = 50, pause_s: float = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAINING, str(job), str(steps), str(pause_s)]
    return subprocess.Popen(command, env=terminal.env, text=True, stderr=subprocess.PIPE)


def _is_complete(terminal: Terminal, job: int) -> bool:
    status = terminal.document("status", str(job))
    return status is not None and status["completeness"]["state"] == "complete"


def test_a_training_needs_no_address(terminal: Terminal) -> None:
    """Without any variable, runs before, during and after a stack that is killed are stored in its Postgres."""
    options = ("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    terminal.env |= {"LOKI_ENABLED": "false"}
    _, output = _train(terminal, 1).communicate(timeout=180)
    assert output.count("\n") == 1
    early = _train(terminal, 2, 10_000, 0.1)
    first = terminal.up(*options)
    _, output = _train(terminal, 3).communicate(timeout=180)
    assert output == ""
    terminal.wait_for(lambda: _is_complete(terminal, 1) and _is_complete(terminal, 3))
    terminal.wait_for(lambda: (terminal.document("status", "2") or {}).get("status") == "running")
    first.kill()
    first.wait()
    _, output = _train(terminal, 4).communicate(timeout=180)
    assert "no trainwire is running" in output
    port = terminal.document_of("secrets.json")["valkey_port"]
    for name in ("worker", "notifier", "checkpoints", "beat", "valkey"):
        terminal.part(name).kill()
    with ExitStack() as taken:  # the stack comes back on another port
        taker = taken.enter_context(socket.socket())
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        terminal.wait_for(lambda: _has_bound(taker, port))
        terminal.up(*options)
        assert f"valkey: port {port} is taken by another program: listening on" in terminal.output()
        before = terminal.document("status", "2")["rows"]["metrics"]
        terminal.wait_for(lambda: terminal.document("status", "2")["rows"]["metrics"] > before)
        terminal.wait_for(lambda: _is_complete(terminal, 4))
    early.terminate()
    early.communicate(timeout=180)
    terminal.wait_for(lambda: terminal.document("status", "2")["completeness"]["state"] == "complete")


def _has_bound(taker: socket.socket, port: int) -> bool:
    try:
        taker.bind(("127.0.0.1", port))
        taker.listen()
    except OSError:
        return False
    return True


def test_a_loki_that_starts_later_gets_the_waiting_rows(terminal: Terminal) -> None:
    """Rows from before Loki started are delivered; a command in another shell uses the stack's Loki."""
    options = ("--no-flower", "--no-gateway", "--no-metrics", "--concurrency", "1")
    terminal.env |= {"LOKI_ENABLED": "false"}
    first = terminal.up(*options)
    _train(terminal, 1).communicate(timeout=180)
    terminal.wait_for(lambda: _is_complete(terminal, 1))
    first.send_signal(signal.SIGINT)
    first.wait(120)
    with LokiTwin() as twin:
        terminal.env |= {"LOKI_ENABLED": "true", "LOKI_URL": twin.url}
        terminal.up(*options)
        del terminal.env["LOKI_URL"]
        terminal.env["LOKI_ENABLED"] = "false"
        terminal.wait_for(lambda: len(twin.lines(1)) == 1)
        # A row is in Loki a moment before Postgres has that.
        terminal.wait_for(lambda: "fully delivered" in terminal.run("deliveries").stdout)
        assert terminal.run("verify", "1", "--sink", "loki").returncode == 0
