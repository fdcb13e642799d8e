"""The containers of deploy/kubernetes as processes: command, user, read-only root, probes, SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import text

from tests.factories import Sender, logs
from tests.processes import server_variables, wait_until
from tests.unit.test_kubernetes import BASE, SETTINGS, container, pods
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

USER: Final = "10001"
ROOT: Final = Path(__file__).parents[2]
SANDBOX: Final = """
set -e
mount --make-rprivate /
mkdir -p "$PYTHON_COPY" && mount --bind "$PYTHON_HOME" "$PYTHON_COPY"
mount -t tmpfs -o mode=755 tmpfs /root # which only root may enter
mkdir -p "$PYTHON_HOME" && mount --move "$PYTHON_COPY" "$PYTHON_HOME"
mount -t tmpfs -o mode=1777,size=256m tmpfs /tmp
mount -o remount,bind,ro / && mount -o remount,ro /root
cd /tmp
exec setpriv --reuid "$RUN_AS" --regid "$RUN_AS" --clear-groups --no-new-privs \\
  --inh-caps=-all --bounding-set=-all "$@"
"""
TIMEOUT_S: Final = 240

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, unshare and setpriv"
    ),
]


class Pod:
    """A container of a Deployment or Job, as a process in a mount namespace of its own."""

    def __init__(self, name: str, spec: dict[str, Any], env: dict[str, str], log_path: Path) -> None:
        self.name, self.spec, self._env, self._log_path = name, spec, env, log_path
        self._copy = log_path.with_suffix(".python")

    def start(self) -> None:
        """Start its command."""
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/tmp",
            "PYTHON_HOME": sys.base_prefix,
            "PYTHON_COPY": str(self._copy),
            "RUN_AS": USER,
        }
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", SANDBOX, "sh", *self.spec["command"]],
                env=env | self._env,
                stdout=log,
                stderr=log,
            )

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self._log_path.read_text(errors="replace")

    def passes(self, kind: str) -> bool:
        """Return whether this probe succeeds; one that is not declared does."""
        probe = self.spec.get(kind, {})
        if "exec" in probe:
            inside = ["nsenter", "--target", str(self.process.pid), "--mount", *probe["exec"]["command"]]
            return subprocess.run(inside, check=False, timeout=120).returncode == 0
        if "httpGet" not in probe:
            return True
        ports = {port["name"]: port["containerPort"] for port in self.spec["ports"]}
        url = f"http://127.0.0.1:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        try:
            with urllib.request.urlopen(url, timeout=60):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def is_ready(self) -> bool:
        """Return whether all of its probes succeed; fail if it has ended."""
        assert self.process.poll() is None, self.output
        return all(map(self.passes, ("startupProbe", "livenessProbe", "readinessProbe")))

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)


def pod(name: str, resources: Resources, folder: Path) -> Pod:
    """Return a pod with the settings of the base and the Secret of the test's servers; ports are free ones."""
    settings = resources.settings
    env = SETTINGS | {
        **server_variables(settings),
        "FLOWER_USER": "operator",
        "FLOWER_PASSWORD": "kept-in-the-secret",
        "PYTHONPATH": str(ROOT),
    }
    spec = dict(container(pods(BASE)[name]))
    for port in spec.get("ports", []):
        before, after = str(port["containerPort"]), str(free_port())
        port["containerPort"] = int(after)
        spec["command"] = [after if word == before else word for word in spec["command"]]
        env |= {"GATEWAY_PORT": after} if name == "gateway" else {}
    return Pod(name, spec, env, folder / f"{name}.log")


@contextmanager
def running(*started: Pod) -> Iterator[None]:
    """Run these pods until all are ready; kill what is left of them."""
    with ExitStack() as stack:
        for each in started:
            each.start()
            stack.callback(each.kill)
        for each in started:
            wait_until(each.is_ready, f"{each.name} is ready", timeout_s=TIMEOUT_S)
        yield


def test_pods_store_a_message_and_end(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Every Deployment becomes ready; a message is stored; each shuts down at SIGTERM."""
    names = [each["metadata"]["name"] for each in BASE if each["kind"] == "Deployment"]
    started = [pod(name, resources, tmp_path) for name in names]
    with running(*started):
        sender.send(logs("from a pod"), job=7)
        gateway = next(each for each in started if each.name == "gateway")
        wait_until(lambda: stored(resources) == 1, "the line is stored", timeout_s=TIMEOUT_S)
        assert gateway.passes("readinessProbe")
        for each in started:
            each.process.terminate()
        codes = {each.name: each.process.wait(TIMEOUT_S) for each in started}
        # uvicorn ends by the signal once it has shut down.
        assert codes == dict.fromkeys(names, 0) | {"gateway": -signal.SIGTERM}
        assert "Finished server process" in gateway.output


def test_the_migration_ends_with_zero(resources: Resources, tmp_path: Path) -> None:
    """The Job migrates tables that may be migrated already, and ends."""
    migration = pod("migrate", resources, tmp_path)
    migration.start()
    assert migration.process.wait(TIMEOUT_S) == 0, migration.output


def test_the_sandbox_is_one(resources: Resources, tmp_path: Path) -> None:
    """A pod cannot write to its root or become another user."""
    probe = pod("migrate", resources, tmp_path)
    probe.spec["command"] = ["sh", "-c", "id -u; touch /written /usr/written; touch /tmp/written && echo tmp"]
    probe.start()
    probe.process.wait(TIMEOUT_S)
    assert probe.output.splitlines()[0] == USER
    assert probe.output.count("Read-only file system") == 2
    assert probe.output.splitlines()[-1] == "tmp"


def stored(resources: Resources) -> int:
    """Return the number of lines in Postgres."""
    with resources.engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM training_logs")).scalar_one())
