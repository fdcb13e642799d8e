"""One server of Redis, judged by its answer to INFO: does it keep what it was given, and has it room?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trainwire.workers.findings import Finding, Findings, Part

Info = Mapping[str, Any]
"""What redis-py makes of INFO."""

NEEDED: Final = {"redis": (6, 2), "valkey": (7, 2)}
FULL: Final = 0.97
BUSY: Final = 0.8
"""Of `maxclients`: a restart of trainers or workers needs some connections twice for a moment."""
OWN_FILES: Final = 32
"""What a server keeps of its open-file limit for itself (CONFIG_MIN_RESERVED_FDS)."""


def version(part: Part, info: Info) -> Finding:
    """Judge its version."""
    kind = "valkey" if "valkey_version" in info else "redis"
    said = str(info.get(f"{kind}_version", "0"))
    numbers = tuple(int(number) for number in said.split(".")[:2] if number.isdigit())
    if numbers < NEEDED[kind]:
        wanted = ".".join(map(str, NEEDED[kind]))
        return part.error("version", f"is {kind} {said}", f"install {kind} {wanted} or newer")
    return part.ok("version", f"is {kind} {said}")


def eviction(part: Part, info: Info) -> Finding:
    """Judge what it does when it is full."""
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return part.ok("eviction", "throws nothing away when it is full")
    says = f"throws messages away when it is full: maxmemory-policy is {policy}"
    return part.error("eviction", says, "redis-cli config set maxmemory-policy noeviction, and in its file")


def keeping(part: Part, info: Info, *, has_streams: bool = True) -> Findings:
    """Yield whether it survives a restart, and whether its disk takes what it writes."""
    if info.get("aof_enabled"):
        yield part.ok("persistence", "has an append-only file")
    elif has_streams:
        says = "forgets its streams at a restart: no append-only file (trainers that still run send them again)"
        yield part.warning("persistence", says, "redis-cli config set appendonly yes, and in its file")
    else:
        yield part.ok("persistence", "has no append-only file, and needs none: orders are given again")
    failed = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if failed:
        says = f"cannot write to its disk ({', '.join(failed)}), and may refuse all writes"
        yield part.error("disk", says, "make room on its disk, and look at its log")


def memory(part: Part, info: Info, high_water: float) -> Finding:
    """Judge its memory; `high_water` is the share above which trainers are told to hold back."""
    used, limit = int(info["used_memory"]), int(info["maxmemory"])
    if not limit:
        says = "has no maxmemory: it grows until the machine kills it, and trainers are never told to hold back"
        return part.warning("memory", says, "redis-cli config set maxmemory 1gb (or what the machine can spare)")
    says = f"uses {used / limit:.0%} of its {limit / 2**20:,.0f} MiB"
    if used > FULL * limit:
        return part.error("memory", says, "start workers that drain it, or raise maxmemory")
    if used > high_water * limit:
        return part.warning("memory", says, "drain faster (docs/runbook.md), or raise maxmemory")
    return part.ok("memory", says)


def clients(part: Part, info: Info) -> Findings:
    """Yield how many connections it has left; nothing where it does not tell how many it takes."""
    if "maxclients" not in info:
        return
    limit = int(info["maxclients"])
    used = int(info["connected_clients"]) + int(info.get("cluster_connections", 0))
    turned_away = int(info.get("rejected_connections", 0))
    says = f"{used:,} of {limit:,} connections are in use"
    says += f"; {turned_away:,} were refused since its start" if turned_away else ""
    if used <= BUSY * limit:
        yield part.ok("clients", says)
        return
    files = limit + OWN_FILES
    # At its start a server cuts maxclients to what its open files allow, which usually are a power of two.
    if files & (files - 1) == 0:
        says += f"; its limit of open files, {files:,}, seems to set it"
    yield part.warning("clients", says, MORE_CLIENTS)


MORE_CLIENTS: Final = (
    "redis-cli config set maxclients 20000, and in its file; raise its limit of open files with it "
    "(ulimit -n, LimitNOFILE in systemd)"
)
