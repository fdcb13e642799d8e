"""Which servers a command uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainwire.cli.commands.options import servers
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.client.addresses import find_address
from trainwire.ingest.servers.destinations import destination_of
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.stack.errors import Problem
from trainwire.stack.folders import hold, publish


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hold and publish a stack of this user, without any address in the environment."""
    for name in ("TRAINWIRE_URL", "GATEWAY_URL", "DATABASE_URL", "REDIS_URL", "STREAMS_URL", "TRAINWIRE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_DATA_HOME": str(tmp_path / "data")}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    addresses = {
        "redis_url": "redis://:pw@127.0.0.1:7001/0",
        "database_url": "postgresql://own",
        "gateway_url": "http://127.0.0.1:8800",
    }
    with hold(tmp_path / "own"):
        publish(tmp_path / "own", addresses, environ)
        yield tmp_path / "own"


def test_a_gateway_in_the_environment_goes_before_a_running_stack(
    stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For trainers, clients and commands alike; a command that cannot use it names the remedies."""
    assert servers(None).database_url == "postgresql://own"
    monkeypatch.setenv("TRAINWIRE_URL", "https://train.example")
    assert destination_of(TrainerSettings.from_env()).locate() == "https://train.example"
    assert find_address(None, None, None).url == "https://train.example"
    with gateway_jobs(None) as remote:
        assert remote is not None
        assert remote.url == "https://train.example"
    with pytest.raises(Problem, match=r"TRAINWIRE_URL=https://train\.example names a gateway, and this command"):
        servers(None)
    assert servers(stack).database_url == "postgresql://own"
    with gateway_jobs(stack) as remote:
        assert remote is None


def test_the_stack_may_be_named_by_its_gateway(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own address is no other server, and a Postgres in the environment is used by commands."""
    monkeypatch.setenv("TRAINWIRE_URL", "http://localhost:8800")
    assert servers(None).data_dir == stack
    monkeypatch.setenv("TRAINWIRE_URL", "https://train.example")
    monkeypatch.setenv("DATABASE_URL", "postgresql://theirs")
    assert servers(None).database_url == "postgresql://theirs"
    with gateway_jobs(None) as remote:
        assert remote is None
