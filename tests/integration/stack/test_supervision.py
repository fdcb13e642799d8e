"""Parts that die are started again, and no process is left at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from tests.processes import wait_until
from trainwire.stack.child import Child
from trainwire.stack.errors import PartEnded, PartFailed
from trainwire.stack.persisted_config import Port, free_port, is_free, usable_port
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.stack import WebPart
from trainwire.stack.supervisor import FREE_KILLS, HEALTHY_IF_KILLED_AFTER_S, CommandPart, Supervisor
from trainwire.stack.valkey import EmbeddedValkey

FOREVER = [sys.executable, "-c", "import signal; signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True);"
    "[signal.pause() for _ in iter(int, 1)]",
]
DIES = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]


class Watch:
    """A supervisor and the lines that it printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.supervisor = Supervisor(self.lines.append)

    def check_until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        """Let the supervisor look at its parts until `condition()`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.lines
            self.supervisor.check()
            time.sleep(0.02)

    def has_printed(self, text: str) -> bool:
        """Return whether a line with `text` was printed."""
        return any(text in line for line in self.lines)


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Give a supervisor that leaves nothing running."""
    made = Watch()
    yield made
    made.supervisor.kill()


def test_a_killed_part_is_started_again_and_reported(watch: Watch, tmp_path: Path) -> None:
    """SIGKILL a part: the supervisor names the signal and the log, and starts it again."""
    part = CommandPart("worker", FOREVER, tmp_path)
    watch.supervisor.start(part)
    first = part.child.pid
    assert first is not None
    psutil.Process(first).kill()
    watch.check_until(lambda: watch.has_printed("worker: started again"))
    assert part.child.is_running()
    assert part.child.pid != first
    assert watch.has_printed(f"worker: killed by SIGKILL, starting it again (log: {tmp_path}/logs/")


def test_a_part_that_is_killed_again_and_again_is_started_at_once(watch: Watch, tmp_path: Path) -> None:
    """Each of five SIGKILLs, a few seconds apart, is followed by a start without delay; of a failing part not."""
    now = 0.0
    watch.supervisor = Supervisor(watch.lines.append, clock=lambda: now)
    part = CommandPart("worker", FOREVER, tmp_path)
    watch.supervisor.start(part)

    def kill_with(number: int) -> None:
        killed = part.child.pid
        assert killed is not None
        os.kill(killed, number)
        watch.check_until(lambda: part.child.pid != killed or watch.has_printed("starting it again in"))

    for _ in range(5):
        now += HEALTHY_IF_KILLED_AFTER_S + 1
        kill_with(signal.SIGKILL)
    assert not watch.has_printed("starting it again in")
    kill_with(signal.SIGTERM)
    assert watch.has_printed("worker: killed by SIGTERM, starting it again in 0.2 s")


def test_a_part_that_is_killed_every_two_seconds_waits(watch: Watch, tmp_path: Path) -> None:
    """After five kills the starts are delayed, each longer; ten seconds without a kill end the delays."""
    now = 0.0
    watch.supervisor = Supervisor(watch.lines.append, clock=lambda: now)
    part = CommandPart("worker", FOREVER, tmp_path)
    watch.supervisor.start(part)

    def delay_s(ran_s: float) -> float:
        """Kill the part when it has run for `ran_s` seconds; return the delay of its next start."""
        nonlocal now
        killed, now = part.child.pid, now + ran_s
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        watch.check_until(lambda: part.child.pid != killed or watch.has_printed("starting it again in"))
        began = now
        while part.child.pid == killed:
            now += 0.1
            watch.supervisor.check()
        watch.lines.clear()
        return now - began

    assert [delay_s(2.0) for _ in range(FREE_KILLS)] == [0.0] * FREE_KILLS
    delays = [delay_s(2.0) for _ in range(8)]
    assert delays == sorted(delays)
    assert delays[0] == pytest.approx(0.2, abs=0.15)
    assert delays[-1] == pytest.approx(10.0, abs=0.15)
    assert [delay_s(11.0), delay_s(2.0)] == [0.0, 0.0]


def test_a_part_that_dies_at_once_shows_its_log(watch: Watch, tmp_path: Path) -> None:
    """Repeated ends are reported with exit code and last log lines, with growing delays."""
    watch.supervisor.start(CommandPart("worker", DIES, tmp_path))
    watch.check_until(lambda: watch.has_printed("| no such luck"))
    assert watch.has_printed("worker: ended with exit code 1, starting it again in 0.4 s")


class Store(CommandPart):
    """A part that other parts need until they have ended."""

    is_store = True


def test_stores_stop_last(watch: Watch, tmp_path: Path) -> None:
    """Parts that use the stores stop first, in parallel; then the stores in reverse order."""
    for name in ("one", "two"):
        watch.supervisor.start(Store(name, FOREVER, tmp_path))
    for name in ("three", "four"):
        watch.supervisor.start(CommandPart(name, FOREVER, tmp_path))
    watch.lines.clear()
    watch.supervisor.stop()
    stopped = [line.split(":")[0] for line in watch.lines]
    assert set(stopped[:2]) == {"three", "four"}
    assert stopped[2:] == ["two", "one"]
    assert list((tmp_path / "run").iterdir()) == []


def test_a_deaf_part_is_killed_after_its_time(tmp_path: Path) -> None:
    """A part that ignores SIGTERM is killed after its timeout."""
    child = Child("deaf", tmp_path, stop_timeout_s=0.3)
    child.start(STUBBORN)
    child.wait_ready(lambda: "deaf" in child.log_path.read_text(), 60)
    child.stop()
    assert child.exit_code() == -signal.SIGKILL


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_children_of_a_killed_child_die_too(tmp_path: Path) -> None:
    """Killing a part kills its pool processes."""
    code = f"import subprocess; print(subprocess.Popen({FOREVER!r}).pid, flush=True); input()"
    child = Child("parent", tmp_path)
    child.start([sys.executable, "-c", f"{code}; import signal; signal.pause()".replace("; input()", "")])
    child.wait_ready(lambda: child.log_path.read_text().endswith("\n"), 60)
    grandchild = int(child.log_path.read_text())
    child.kill()
    wait_until(lambda: is_gone(grandchild), "its end")


def test_the_leftover_of_a_killed_supervisor_is_stopped(tmp_path: Path) -> None:
    """After kill -9 of its parent, a part is found by its pid file and stopped before the next start."""
    code = (
        "import os, signal, sys; from pathlib import Path; from trainwire.stack.child import Child; "
        f"child = Child('worker', Path({str(tmp_path)!r})); child.start({FOREVER!r}); "
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    leftover = psutil.Process(int(killed.stdout))
    assert leftover.is_running()
    child = Child("worker", tmp_path)
    child.start(FOREVER)
    assert not leftover.is_running() or leftover.status() == psutil.STATUS_ZOMBIE
    assert child.is_running()
    child.stop()


def test_a_reused_process_number_is_left_alone(tmp_path: Path) -> None:
    """A pid file whose number belongs to another process stops no process."""
    stranger = subprocess.Popen(FOREVER)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "worker.json").write_text(f'{{"pid": {stranger.pid}, "created": 12.5}}')
    child = Child("worker", tmp_path)
    child.start(FOREVER)
    child.stop()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_waiting_ends_when_a_stop_is_requested(watch: Watch, tmp_path: Path) -> None:
    """Ctrl-C during a slow start does not wait for the end of that start."""
    child = Child("slow", tmp_path)
    child.start(FOREVER)
    child.stop_waiting()
    with pytest.raises(PartFailed, match="was not waited for"):
        child.wait_ready(lambda: False, 60)
    child.kill()
    watch.supervisor.request_stop()
    watch.supervisor.watch(lambda: None)
    assert watch.supervisor.stop_requested


class Foreign(BaseHTTPRequestHandler):
    """A web server of another program, which answers every path like a healthy gateway."""

    def do_GET(self) -> None:
        """Answer 200."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class LostRace(Port):
    """A port that another process binds after it was found free, and before the server binds it."""

    def start(self, start: Callable[[], None]) -> None:
        """Take the port first."""
        self.foreign = ThreadingHTTPServer(("127.0.0.1", self.number), Foreign)
        Thread(target=self.foreign.serve_forever).start()
        try:
            super().start(start)
        finally:
            self.foreign.shutdown()
            self.foreign.server_close()


def web_server(port: int) -> tuple[list[str], Mapping[str, str]]:
    """Return the command and environment of a web server."""
    return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], os.environ


def test_a_web_server_that_lost_its_port_takes_another(tmp_path: Path) -> None:
    """A foreign server that answers on the port is not taken for ours; our server gets another port."""
    port = LostRace(tmp_path, "web")
    part = WebPart("web", tmp_path, port, web_server)
    lost = port.number
    try:
        part.start()
        assert part.url == f"http://127.0.0.1:{port.number}"
        assert port.number != lost
        assert part.child.listens_on(port.number)
        assert usable_port(tmp_path, "web") != lost
    finally:
        part.child.kill()


def test_a_chosen_port_is_not_replaced(tmp_path: Path) -> None:
    """A port that the user chose and another process has is an error with the server's log."""
    part = WebPart("web", tmp_path, LostRace(tmp_path, "web", fixed=free_port()), web_server)
    with pytest.raises(PartEnded, match="in use"):
        part.start()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_store_that_lost_its_port_takes_another(
    kind: type[EmbeddedPostgres] | type[EmbeddedValkey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server of a copied folder has the port and the same password, ours is started on another port."""
    free_once = iter([True])
    with kind(tmp_path / "first") as first:
        subprocess.run(["cp", "-a", tmp_path / "first", tmp_path / "second"], check=True)
        (tmp_path / "second" / first.name / "postmaster.pid").unlink(missing_ok=True)
        (tmp_path / "second" / "run" / f"{first.name}.json").unlink()
        # The race: the port that the copy remembers is free when it is looked at, and taken when it is bound.
        monkeypatch.setattr(
            "trainwire.stack.persisted_config.is_free", lambda *asked: next(free_once, is_free(*asked))
        )
        with kind(tmp_path / "second") as second:
            assert second.port != first.port
            assert second.child.listens_on(second.port)


def test_a_server_keeps_its_port_once_it_was_ready(tmp_path: Path) -> None:
    """After it was ready, a restart fails with the cause if another process has the port."""
    server = EmbeddedValkey(tmp_path)
    with server:
        port = server.port
        server.kill()
        with ThreadingHTTPServer(("127.0.0.1", port), Foreign), pytest.raises(PartEnded, match="in use"):
            server.start()
        assert server.port == port
        server.start()
