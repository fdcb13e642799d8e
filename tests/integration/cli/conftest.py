"""The commands against the test servers, in this process."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.factories import drain
from tests.twins.loki import LokiTwin
from trainwire.__main__ import main
from trainwire.cli.doctor import processes
from trainwire.schemas.keys import DEFAULT_SHARDS, KINDS, SHARDS_KEY
from trainwire.workers import findings
from trainwire.workers.resources import Resources


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    code: int
    out: str
    err: str


Trainwire = Callable[..., Outcome]
Found = dict[str, dict[str, str]]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Give an environment without servers and without any running stack."""
    servers = ("DATABASE_URL", "REDIS_URL", "STREAMS_URL", "FLOWER_URL", "LOKI_URL", "MLFLOW_TRACKING_URI")
    for name in ("TRAINWIRE_DATA_DIR", *servers):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return monkeypatch


@pytest.fixture
def trainwire(alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trainwire:
    """Give a function that runs one command without any known servers."""

    def run(*arguments: str) -> Outcome:
        alone.setattr(sys, "argv", ["trainwire", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        return Outcome(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def loki(alone: pytest.MonkeyPatch) -> Iterator[LokiTwin]:
    """Give an empty Loki that the commands use."""
    with LokiTwin() as twin:
        alone.setenv("LOKI_URL", twin.url)
        yield twin


@pytest.fixture
def connected(trainwire: Trainwire, alone: pytest.MonkeyPatch, resources: Resources) -> Trainwire:
    """Give a function that runs one command on the empty test servers."""
    alone.setenv("DATABASE_URL", resources.settings.database_url.get_secret_value())
    alone.setenv("REDIS_URL", resources.settings.redis_url.get_secret_value())
    return trainwire


class Doctor:
    """Runs the command, and keeps its exit code."""

    def __init__(self, trainwire: Trainwire) -> None:
        self._trainwire = trainwire
        self.code = -1

    def look(self) -> Found:
        """Return the findings by part and check."""
        done = self._trainwire("doctor", "--json")
        self.code = done.code
        found = {f"{each['part']}.{each['check']}": each for each in json.loads(done.out)}
        assert self.code == max(findings.SEVERITY[each["level"]] for each in found.values())
        assert all(each["remedy"] for each in found.values() if each["level"] != "ok")
        return found


@pytest.fixture
def doctor(trainwire: Trainwire, alone: pytest.MonkeyPatch, resources: Resources) -> Doctor:
    """Give the doctor of the test servers, where workers have run and none is running."""
    resources.redis.set(SHARDS_KEY, DEFAULT_SHARDS)
    alone.setenv("DATABASE_URL", resources.settings.database_url.get_secret_value())
    alone.setenv("REDIS_URL", resources.settings.redis_url.get_secret_value())
    alone.setenv("LOKI_ENABLED", "false")
    alone.setattr(processes, "ANSWER_WITHIN_S", 0.1)  # for workers, of which none is running
    return Doctor(trainwire)


@pytest.fixture
def workers(resources: Resources) -> Iterator[None]:
    """Drain all streams all the time, as workers do."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for kind in KINDS:
                for shard in range(1, 5):
                    drain(resources, kind, job=shard)
            ended.wait(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join(30)
