"""The table of faults that the chaos run injects: a function for each, and the loss that it may cause.

To add a fault, write a function of the world and a row of `FAULTS`.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import psutil

from tests.chaos.trainer import SEGMENT_BYTES
from tests.chaos.world import World
from trainwire.schemas.keys import SHARDS_KEY
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.valkey import DEFAULT_MAXMEMORY, EmbeddedValkey

Cost = Literal["nothing", "the last second of a killed trainer", "the destroyed messages, each named by the sum"]

FULL_BYTES: Final = 2 * SEGMENT_BYTES
"""The size of a file beyond which writes fail on a simulated full disk; a write across it is torn."""
LOST_AFTER_S: Final = 6
"""The shortest time after which workers mark a silent job as lost."""
SHARDS: Final = (1, 2, 3, 4, 5, 8)


@dataclass(frozen=True)
class Fault:
    """A fault: its name in the output, the function that injects it, and the loss that it may cause."""

    name: str
    inject: Callable[[World], object]
    cost: Cost = "nothing"


def kill_pool_process(world: World) -> None:
    """SIGKILL one pool process of a worker."""
    children = psutil.Process(world.worker.process.pid).children()
    if children:
        os.kill(world.chance.choice(children).pid, signal.SIGKILL)


def kill_gateway(world: World) -> None:
    """SIGKILL the gateway; it is started again on its port."""
    world.gateway.end()


def change_shards(world: World) -> None:
    """Restart all workers and beat with another INGEST_SHARDS; living trainers keep the old number."""
    shards = str(world.chance.choice(SHARDS))
    print(f"           {shards} shards", flush=True)
    for process in world.celery:
        process.set_env(INGEST_SHARDS=shards)
        process.kill()
        process.start()


def forget_shards(world: World) -> None:
    """Delete the number of shards in Redis: trainers that start now use the default."""
    world.redis.delete(SHARDS_KEY)


def pause_redis(world: World) -> None:
    """Stop the server's process for a while: connections stay open, nothing is answered."""
    assert world.valkey.child.pid is not None
    process = psutil.Process(world.valkey.child.pid)
    process.suspend()
    world.pause(0.5, 3)
    process.resume()


def fill_redis(world: World) -> None:
    """Set Redis' maxmemory below its present use for a while, so that it refuses every write that needs memory."""
    client = world.redis
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    world.pause(1, 4)
    client.config_set("maxmemory", DEFAULT_MAXMEMORY)


def restart(world: World, server: EmbeddedPostgres | EmbeddedValkey, end: Callable[[], None]) -> None:
    """End a server and start it after a short pause."""
    end()
    world.pause(0, 1.5)
    server.start()


def kill_postmaster(world: World) -> None:
    """SIGKILL Postgres' main process alone: its sessions end by themselves, then it is started again."""
    assert world.postgres.child.pid is not None
    tree = psutil.Process(world.postgres.child.pid)
    processes = [tree, *tree.children(recursive=True)]
    tree.kill()
    psutil.wait_procs(processes, timeout=20)
    restart(world, world.postgres, world.postgres.kill)


def kill_session(world: World) -> None:
    """SIGKILL one session of Postgres: the server ends all the others and recovers by itself."""
    assert world.postgres.child.pid is not None
    processes = psutil.Process(world.postgres.child.pid).children(recursive=True)
    sessions = [process for process in processes if "127.0.0.1(" in " ".join(process.cmdline())]
    if sessions:
        world.chance.choice(sessions).kill()


def stop_trainer(world: World) -> None:
    """SIGSTOP a trainer for longer than LOST_AFTER_S, while other faults continue."""
    trainer = world.trainer
    trainer.send_signal(signal.SIGSTOP)
    world.later(LOST_AFTER_S + world.chance.uniform(1, 6), lambda: trainer.send_signal(signal.SIGCONT))


def fill_disk(world: World) -> None:
    """Simulate a full disk for a trainer for a while."""
    with full_disk(world.trainer.pid, world.chance.randrange(FULL_BYTES)):
        world.pause(0.5, 3)


def fill_disk_and_kill_redis(world: World) -> None:
    """Simulate a full disk for a trainer while Redis is killed and started."""
    with full_disk(world.trainer.pid, world.chance.randrange(FULL_BYTES)):
        world.pause(0, 0.5)
        restart(world, world.valkey, world.valkey.kill)


def damage_living_spool(world: World) -> None:
    """Damage segments of a living trainer while it cannot send."""
    world.valkey.kill()
    world.pause(1.5, 4)
    world.damage.damage_living(world.trainer.pid)
    world.valkey.start()


def damage_killed_spool(world: World) -> None:
    """Kill a trainer that cannot send, and damage segments that it leaves."""
    world.valkey.kill()
    world.pause(1.5, 4)
    pid = world.killed_trainers.kill()
    world.damage.damage_dead(pid)
    world.valkey.start()
    world.killed_trainers.start_next()


@contextmanager
def full_disk(pid: int, limit_bytes: int) -> Iterator[None]:
    """Limit the size of files that a process can write: write() fails as on a full disk (setrlimit(2))."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


FAULTS: Final = (
    Fault("worker killed", lambda world: world.worker.kill()),
    Fault("pool process killed", kill_pool_process),
    Fault("beat killed", lambda world: world.beat.kill()),
    Fault("gateway killed", kill_gateway),
    Fault("number of shards changed", change_shards),
    Fault("number of shards forgotten", forget_shards),
    Fault("Redis killed", lambda world: restart(world, world.valkey, world.valkey.kill)),
    Fault("Redis restarted", lambda world: restart(world, world.valkey, world.valkey.stop)),
    Fault("Redis paused", pause_redis),
    Fault("Redis flushed", lambda world: world.redis.flushall()),
    Fault("Redis full", fill_redis),
    Fault("Postgres killed", lambda world: restart(world, world.postgres, world.postgres.kill)),
    Fault("Postgres restarted", lambda world: restart(world, world.postgres, world.postgres.stop)),
    Fault("Postgres' main process killed", kill_postmaster),
    Fault("Postgres' session killed", kill_session),
    Fault(
        "trainer killed",
        lambda world: world.killed_trainers.kill_and_start_next(),
        "the last second of a killed trainer",
    ),
    Fault("trainer stopped for longer than LOST_AFTER_S", stop_trainer),
    Fault("clock set back", lambda world: world.trainer.send_signal(signal.SIGUSR1)),
    Fault("clock set right", lambda world: world.trainer.send_signal(signal.SIGUSR2)),
    Fault("disk full", fill_disk),
    Fault("disk full, and Redis killed", fill_disk_and_kill_redis),
    Fault(
        "spool of a living trainer damaged",
        damage_living_spool,
        "the destroyed messages, each named by the sum",
    ),
    Fault(
        "spool of a killed trainer damaged",
        damage_killed_spool,
        "the destroyed messages, each named by the sum",
    ),
)


def chosen(names: str) -> list[Fault]:
    """Return the faults whose names contain one of these words, separated by commas; all for no words."""
    return [fault for fault in FAULTS if any(word in fault.name for word in names.split(","))]


def inject_until(world: World, ends: float, faults: Sequence[Fault]) -> list[str]:
    """Inject one fault after the other until the monotonic time `ends`; return their names in order."""
    injected = []
    while time.monotonic() < ends:
        world.pause(0.5, 3)
        fault = world.chance.choice(faults)
        print(f"  {ends - time.monotonic():5.1f} s left: {fault.name}", flush=True)
        injected.append(fault.name)
        fault.inject(world)
        world.recover()
    world.recover(everything=True)
    return injected
