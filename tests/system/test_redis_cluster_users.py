"""A cluster behind TLS with the users of deploy/users.acl.template: they can do their work, and no more."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from redis.exceptions import NoPermissionError

from tests.certificates import Authority
from tests.processes import ROOT, server_variables, workers_running
from tests.tls_proxy import TlsProxy
from tests.tls_servers import Tls
from tests.trainer_processes import check_command, check_postgres, ends_of, let_more_arrive, trainers_running
from tests.valkey_cluster import ValkeyCluster
from trainwire.schemas.keys import KINDS, SHARDS_KEY, acks_key, shard_of, stream_key
from trainwire.workers.resources import Resources

USERS = ("worker", "trainer")
SHARDS = 4
JOBS = (1, 2, 3, 4)
HOME, AWAY = 1, 0
"""The servers from which, and to which, the slot of job 1 moves."""


def rules_of(user: str) -> list[str]:
    """Return the rules of ACL SETUSER for a user of the template, whose password is its name."""
    for line in (ROOT / "deploy/users.acl.template").read_text().splitlines():
        if line.startswith(f"user {user} "):
            return line.replace(f"@{user.upper()}_SHA256@", hashlib.sha256(user.encode()).hexdigest()).split()[1:]
    raise AssertionError(f"the template has no user {user}")


def cluster_rules_of_a_trainer() -> list[str]:
    """Return the further rules that docs/redis-users.md gives a trainer on a cluster."""
    (found,) = re.findall(r"`(\+cluster\|slots[^`]*)`", (ROOT / "docs/redis-users.md").read_text())
    return str(found).split()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """A cluster with both users on each of its servers."""
    with ValkeyCluster(tmp_path / "cluster") as cluster:
        for user in USERS:
            cluster.on_all("ACL", "SETUSER", *rules_of(user))
        cluster.on_all("ACL", "SETUSER", "trainer", *cluster_rules_of_a_trainer())
        yield cluster


@pytest.fixture
def proxies(cluster: ValkeyCluster, tls: Tls) -> Iterator[list[TlsProxy]]:
    """TLS in front of each server, without a plain port in the cluster's announcements."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(TlsProxy(node.url, tls.authority.server())) for node in cluster.nodes]
        cluster.announce([proxy.port for proxy in proxies])
        yield proxies


def refused(cluster: ValkeyCluster) -> list[tuple[str, str]]:
    """Return the refused commands of the cluster's users, from the servers' ACL LOG."""
    noted = [entry for entries in cluster.on_all("ACL", "LOG") for entry in entries]
    entries = [
        dict(zip(entry[::2], entry[1::2], strict=True)) if isinstance(entry, list) else entry for entry in noted
    ]
    return [(_text(each, "username"), _text(each, "object")) for each in entries]


def _text(entry: dict[Any, Any], name: str) -> str:
    value = entry.get(name, entry.get(name.encode()))
    return value.decode() if isinstance(value, bytes) else str(value)


def streams_tls(env: Mapping[str, str]) -> dict[str, str]:
    """Return the finding of `doctor` about the TLS of the streams' servers."""
    doctor = [sys.executable, "-m", "trainwire", "doctor", "--json"]
    done = subprocess.run(
        doctor, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120, check=False
    )
    (found,) = [each for each in json.loads(done.stdout) if (each["part"], each["check"]) == ("streams", "tls")]
    return cast("dict[str, str]", found)


def test_trainers_and_workers_on_a_cluster_over_tls(
    resources: Resources, cluster: ValkeyCluster, proxies: list[TlsProxy], tls: Tls, tmp_path: Path
) -> None:
    """Every line is stored though a slot moves in the middle, and no user tries a forbidden command."""
    settings = resources.settings
    addresses = {
        user: cluster.url_of(user, user, [proxy.port for proxy in proxies], "rediss", ssl_ca_certs=tls.ca)
        for user in USERS
    }
    env = {
        **server_variables(settings),
    }
    ours, theirs = ({**env, "STREAMS_URL": addresses[user]} for user in USERS)
    slot = int(cluster.on_all("CLUSTER", "KEYSLOT", stream_key("logs", shard_of(JOBS[0], SHARDS)))[HOME])
    some_arrive = partial(let_more_arrive, resources.engine, JOBS[0], lines=20)
    with (
        workers_running(settings, tmp_path, STREAMS_URL=addresses["worker"]),
        trainers_running(resources.engine, JOBS, theirs) as trainers,
    ):
        for trainer in trainers.values():
            trainer.advance()
        let_more_arrive(resources.engine, *JOBS)
        assert cluster.move_slot(slot, HOME, AWAY, some_arrive) >= len(KINDS) - 1
        let_more_arrive(resources.engine, *JOBS)
        counts = ends_of(trainers)
        for job in JOBS:
            check_postgres(resources.engine, job, counts[job])
            check_command(job, ours)
        assert streams_tls(ours)["level"] == "ok"
        careless = f"{addresses['worker']}&ssl_cert_reqs=none"
        assert "is not verified" in streams_tls(ours | {"STREAMS_URL": careless})["says"]
    assert all(proxy.handshakes for proxy in proxies)
    assert not refused(cluster)


TRAINING = """
from trainwire import Run
with Run(1) as run:
    run.log("said")
"""


def test_a_trainer_does_not_trust_a_strange_cluster(
    cluster: ValkeyCluster, proxies: list[TlsProxy], tls: Tls, tmp_path: Path
) -> None:
    """Without the CA nothing is sent to it; the training ends well, and its messages are kept."""
    ports = [proxy.port for proxy in proxies]
    (tmp_path / "stranger2").mkdir()
    strange = Authority(tmp_path / "stranger2")
    for ca, is_sent in ((strange.path, False), (tls.ca, True)):
        url = cluster.url_of("trainer", "trainer", ports, "rediss", ssl_ca_certs=ca)
        names = {"STREAMS_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0"}
        done = subprocess.run(
            [sys.executable, "-c", TRAINING],
            cwd=ROOT,
            env=os.environ | names,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("certificate" in done.stderr) == (not is_sent), done.stderr
        with redis.Redis.from_url(cluster.nodes[HOME].url) as client:
            assert bool(client.xlen(stream_key("logs", shard_of(1, SHARDS)))) == is_sent


@pytest.mark.parametrize(
    "command",
    [
        ("CLUSTER", "NODES"),
        ("CLUSTER", "FAILOVER"),
        ("CLUSTER", "RESET"),
        ("CLUSTER", "FORGET", "0" * 40),
        ("MIGRATE", "127.0.0.1", 1, stream_key("logs", 1), 0, 1),
        ("XRANGE", stream_key("logs", 1), "-", "+"),
        ("SET", SHARDS_KEY, 1),
        ("HSET", acks_key(1), "0-a:logs", 9),
    ],
    ids=lambda command: f"{command[0]} {command[1]}",
)
def test_a_trainer_can_do_nothing_else(cluster: ValkeyCluster, command: tuple[Any, ...]) -> None:
    """The commands that a trainer may run on a cluster find the servers; those that change them are refused."""
    client = redis.Redis(port=cluster.nodes[HOME].port, username="trainer", password="trainer")
    with client, pytest.raises(NoPermissionError):
        cast("Any", client).execute_command(*command)
