"""A Redis Cluster of three primaries, each with a replica or none, for tests that carry the streams on one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, cast
from urllib.parse import urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.processes import wait_until
from trainwire.ingest.settings.running_stacks import SECRETS_NAME
from trainwire.schemas.keys import KINDS
from trainwire.schemas.streams.clients import open_streams
from trainwire.stack.errors import PartEnded
from trainwire.stack.persisted_config import PORT_ATTEMPTS, free_port, write_private
from trainwire.stack.valkey import EmbeddedValkey

NODES: Final = 3
SLOTS: Final = 16384
SETTINGS: Final = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "2000",
    "cluster-require-full-coverage": "no",
    "cluster-replica-validity-factor": "0",  # a replica takes over however long it was cut off
    "appendfsync": "always",
}


class ValkeyCluster:
    """Three servers that share the slots, `nodes`; each keeps its append-only file and may have a replica."""

    def __init__(self, folder: Path, *, has_replicas: bool = False) -> None:
        self._password = secrets.token_urlsafe(24)
        self._buses: dict[EmbeddedValkey, int] = {}
        self.nodes = [self._server(folder / f"node{number}") for number in range(NODES)]
        replicas = range(NODES if has_replicas else 0)
        self.replicas = [self._server(folder / f"replica{number}") for number in replicas]

    def _server(self, data_dir: Path) -> EmbeddedValkey:
        data_dir.mkdir(parents=True)
        write_private(data_dir / SECRETS_NAME, json.dumps({"valkey_password": self._password}))
        bus = free_port()  # the default, 10,000 above, may be in use by a connection
        own = {"masterauth": self._password, "cluster-port": str(bus)}
        server = EmbeddedValkey(data_dir, settings=SETTINGS | own)
        self._buses[server] = bus
        return server

    @property
    def url(self) -> str:
        """The value of STREAMS_URL for this cluster."""
        return self.url_of("", self._password)

    def url_of(
        self,
        user: str,
        password: str,
        ports: Sequence[int] | None = None,
        scheme: str = "redis",
        **parameters: object,
    ) -> str:
        """Return the address for one of its users; `ports` replaces the servers' own ports."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports or [node.port for node in self.nodes])
        return f"{scheme}+cluster://{user}:{password}@{hosts}{'?' if parameters else ''}{urlencode(parameters)}"

    def on_all(self, *command: object) -> list[Any]:
        """Send a command to each primary as its administrator, and return the replies."""
        return [self._admin(node, *command) for node in self.nodes]

    def announce(self, ports: Sequence[int]) -> None:
        """Have each primary announce another port than its own: that of the proxy in front of it."""
        for node, port in zip(self.nodes, ports, strict=True):
            self._admin(node, "CONFIG", "SET", "cluster-announce-port", port)
        wanted = {str(port) for port in ports}
        wait_until(
            lambda: all(wanted <= set(_ports_in(shown)) for shown in self.on_all("CLUSTER SLOTS")), "the ports"
        )

    @staticmethod
    def _admin(node: EmbeddedValkey, *command: object) -> Any:
        with redis.Redis.from_url(node.url) as client:
            return cast("Any", client).execute_command(*command)

    def misses_slots(self) -> bool:
        """Return whether the living servers have noticed that slots are without a server."""
        counts = []
        for node in self.nodes:
            if node.child.is_running():
                with redis.Redis.from_url(node.url) as client:
                    counts.append(int(cast("Any", client).execute_command("CLUSTER INFO")["cluster_slots_fail"]))
        return min(counts) > 0

    def cut_off(self, number: int) -> None:
        """Stop a replica from following: it never gets the later writes of its primary."""
        with redis.Redis.from_url(self.replicas[number].url) as client:
            client.config_set("masterauth", "wrong")
            cast("Any", client).execute_command("CLIENT KILL TYPE master")
            wait_until(lambda: client.info("replication")["master_link_status"] == "down", "a replica cut off")

    def move_slot(self, slot: int, source: int, target: int, between: Callable[[], None]) -> int:
        """Move a slot from one primary to another, key by key, as `valkey-cli --cluster reshard` does it.

        Return how many keys went. After each of the first few `between` is called: some keys are here, some there.
        """
        clients = [cast("Any", redis.Redis.from_url(node.url)) for node in self.nodes]
        ids = [str(client.execute_command("CLUSTER MYID"), "ascii") for client in clients]
        clients[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        clients[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
        moved = 0
        where = ("127.0.0.1", self.nodes[target].port)
        while keys := clients[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
            answer = clients[source].execute_command(
                "MIGRATE", *where, "", 0, 5000, "AUTH", self._password, "KEYS", *keys
            )
            moved += answer == b"OK"  # else it has expired meanwhile
            if moved <= len(KINDS):
                between()
        for number in (target, source, *range(NODES)):
            clients[number].execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
        for client in clients:
            client.close()
        return moved

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """Give a client of the streams, like that of workers."""
        client = open_streams(self.url, retry=Retry(NoBackoff(), 1), socket_timeout=5)
        try:
            yield client
        finally:
            client.close()

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:  # the servers that run would disturb later tests
            self.__exit__()
            raise
        return self

    def _start(self, node: EmbeddedValkey) -> None:
        """Start a server; choose another port for its bus if a process has bound the chosen one meanwhile."""
        for _ in range(PORT_ATTEMPTS - 1):
            try:
                return node.start()
            except PartEnded:
                self._buses[node] = free_port()
                node._settings["cluster-port"] = str(self._buses[node])
        return node.start()

    def _form(self) -> None:
        """Start the servers, share the slots out and let the replicas follow."""
        for node in (*self.nodes, *self.replicas):
            self._start(node)
        clients = [cast("Any", redis.Redis.from_url(node.url)) for node in self.nodes]
        bounds = [SLOTS * number // NODES for number in range(NODES + 1)]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in (*self.nodes[1:], *self.replicas):
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port, self._buses[node])
        servers = len(self.nodes) + len(self.replicas)
        for client in clients:
            wait_until(partial(is_whole, client, servers), "the cluster")
        for client, replica in zip(clients, self.replicas, strict=False):
            follow(replica, str(client.execute_command("CLUSTER MYID"), "ascii"))
        for client in clients:
            client.close()

    def __exit__(self, *_: object) -> None:
        for node in (*self.nodes, *self.replicas):
            node.stop()


def _ports_in(slots: Any) -> list[str]:
    return [str(served[2][1]) for served in slots]


def role(server: EmbeddedValkey) -> str:
    """Return `master` or `slave`."""
    with redis.Redis.from_url(server.url) as client:
        return str(client.info("replication")["role"])


def follow(replica: EmbeddedValkey, primary_id: str) -> None:
    """Make a server the replica of another, and wait until it has all of its data."""
    with redis.Redis.from_url(replica.url) as client:
        # The other servers know of each other by now, this one may not yet.
        wait_until(lambda: primary_id in str(cast("Any", client).execute_command("CLUSTER NODES")), "its primary")
        cast("Any", client).execute_command("CLUSTER REPLICATE", primary_id)
        wait_until(lambda: client.info("replication").get("master_link_status") == "up", "a replica")


def is_whole(client: Any, servers: int) -> bool:
    """Return whether this server knows all others, and all slots are served."""
    info = client.execute_command("CLUSTER INFO")
    return bool(
        info["cluster_known_nodes"] == str(servers)
        and info["cluster_slots_ok"] == str(SLOTS)
        and info["cluster_state"] == "ok"
    )
