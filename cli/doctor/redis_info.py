"""Checks of one Redis server by its INFO: version, eviction, persistence, memory, connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trainwire.workers.findings import Finding, Findings, Part

Info = Mapping[str, Any]
"""The reply to INFO, parsed by redis-py."""

NEEDED: Final = {"redis": (6, 2), "valkey": (7, 2)}
FULL: Final = 0.97
BUSY: Final = 0.8
"""Share of `maxclients`; restarting trainers and workers hold their old and new connections for a moment."""
OWN_FILES: Final = 32
"""File descriptors that a server reserves for itself (CONFIG_MIN_RESERVED_FDS)."""


def version(part: Part, info: Info) -> Finding:
    """Check the version."""
    kind = "valkey" if "valkey_version" in info else "redis"
    installed = str(info.get(f"{kind}_version", "0"))
    numbers = tuple(int(number) for number in installed.split(".")[:2] if number.isdigit())
    if numbers < NEEDED[kind]:
        wanted = ".".join(map(str, NEEDED[kind]))
        return part.error("version", f"is {kind} {installed}", f"install {kind} {wanted} or newer")
    return part.ok("version", f"is {kind} {installed}")


def eviction(part: Part, info: Info) -> Finding:
    """Check that a full server refuses writes instead of evicting keys."""
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return part.ok("eviction", "evicts no keys when it is full")
    text = f"evicts messages when it is full: maxmemory-policy is {policy}"
    return part.error("eviction", text, "redis-cli config set maxmemory-policy noeviction, and in its file")


def persistence(part: Part, info: Info, *, has_streams: bool = True) -> Findings:
    """Yield whether its data survives a restart, and whether its writes to disk succeed."""
    if info.get("aof_enabled"):
        yield part.ok("persistence", "has an append-only file")
    elif has_streams:
        text = "loses its streams at a restart: no append-only file (trainers that still run send them again)"
        yield part.warning("persistence", text, "redis-cli config set appendonly yes, and in its file")
    else:
        yield part.ok("persistence", "has no append-only file, and needs none: work orders are sent again")
    failed = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if failed:
        text = f"cannot write to its disk ({', '.join(failed)}), and may refuse all writes"
        yield part.error("disk", text, "free space on its disk, and read its log")


def memory(part: Part, info: Info, high_water: float) -> Finding:
    """Check its memory; above the share `high_water` trainers keep messages in their spools."""
    used, limit = int(info["used_memory"]), int(info["maxmemory"])
    if not limit:
        text = "has no maxmemory: it grows until the machine kills it, and trainers never hold messages back"
        return part.warning("memory", text, "redis-cli config set maxmemory 1gb (or what the machine can spare)")
    text = f"uses {used / limit:.0%} of its {limit / 2**20:,.0f} MiB"
    if used > FULL * limit:
        return part.error("memory", text, "start workers that drain it, or raise maxmemory")
    if used > high_water * limit:
        return part.warning("memory", text, "drain faster (docs/runbook.md), or raise maxmemory")
    return part.ok("memory", text)


def connections(part: Part, info: Info) -> Findings:
    """Yield the share of `maxclients` in use; nothing if INFO lacks `maxclients`."""
    if "maxclients" not in info:
        return
    limit = int(info["maxclients"])
    used = int(info["connected_clients"]) + int(info.get("cluster_connections", 0))
    refused = int(info.get("rejected_connections", 0))
    text = f"{used:,} of {limit:,} connections are in use"
    text += f"; {refused:,} were refused since its start" if refused else ""
    if used <= BUSY * limit:
        yield part.ok("clients", text)
        return
    files = limit + OWN_FILES
    # At start a server reduces maxclients to its limit of open files, which is usually a power of two.
    if files & (files - 1) == 0:
        text += f"; its limit of open files, {files:,}, seems to determine it"
    yield part.warning("clients", text, MORE_CLIENTS)


MORE_CLIENTS: Final = (
    "redis-cli config set maxclients 20000, and in its file; raise its limit of open files with it "
    "(ulimit -n, LimitNOFILE in systemd)"
)
