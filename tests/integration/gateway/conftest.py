"""A gateway for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.integration.gateway.feed_clients import GatewayProcess, Trainer
from trainwire.workers.resources import Resources

_jobs = count(1000)


@pytest.fixture(scope="module")
def feed_gateway(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, redis_url: str
) -> Iterator[GatewayProcess]:
    """A gateway on the test servers."""
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), database_url, redis_url) as gateway:
        yield gateway


@pytest.fixture
def trainer(resources: Resources) -> Trainer:
    """A trainer with a job number of its own, because gateways follow a job after its last client has left."""
    return Trainer(resources, next(_jobs))
