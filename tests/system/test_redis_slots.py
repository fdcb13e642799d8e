"""The slot of a shard's streams moves from server to server while its trainers send and workers drain."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from tests.processes import server_variables, workers_running
from tests.trainer_processes import check_command, check_postgres, ends_of, let_more_arrive, trainers_running
from tests.valkey_cluster import ValkeyCluster
from trainwire.schemas.keys import KINDS, shard_of, stream_key
from trainwire.workers.resources import Resources

SHARDS = 4
JOBS = (1, 5, 4)
"""Two jobs of the shard that moves, one of another."""
TOUR = (1, 2, 0, 1, 0, 2, 1)
"""The servers to which the slot moves in turn, from server 1."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """A cluster that this test may rearrange."""
    with ValkeyCluster(tmp_path / "cluster") as cluster:
        yield cluster


def test_a_shard_moves_while_its_trainers_send(
    resources: Resources, cluster: ValkeyCluster, tmp_path: Path
) -> None:
    """While a slot moves six times, every line is stored once and in order, and no outage is reported."""
    settings = resources.settings
    env = {
        **server_variables(settings),
        "STREAMS_URL": cluster.url,
    }
    with cluster.client() as client:
        slot = int(cast("Any", client).keyslot(stream_key("logs", shard_of(JOBS[0], SHARDS))))
    with (
        workers_running(settings, tmp_path, workers=2, STREAMS_URL=cluster.url) as workers,
        trainers_running(resources.engine, JOBS, env) as trainers,
    ):
        for trainer in trainers.values():
            trainer.advance()
        some_arrive = partial(let_more_arrive, resources.engine, *JOBS, lines=20)
        for source, target in pairwise(TOUR):
            let_more_arrive(resources.engine, *JOBS)
            assert cluster.move_slot(slot, source, target, some_arrive) >= len(KINDS) - 1  # no completions yet
        let_more_arrive(resources.engine, *JOBS)
        counts = ends_of(trainers)
        for job in JOBS:
            check_postgres(resources.engine, job, counts[job])
            check_command(job, env)
        assert "server_away" not in "".join(worker.output for worker in workers)
