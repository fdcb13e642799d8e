"""Checks after a chaos run: every message that could survive is stored once, the others are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from sqlalchemy import Engine

from tests.chaos.spool_damage import Item, Lane
from tests.chaos.trainer import CHILD_LINES
from tests.factories import rows
from tests.integration.gateway.feed_clients import GatewayAddress
from tests.processes import wait_until
from trainwire.schemas.tables import dead_letters, source_positions, training_jobs, training_logs, training_metrics

Life = tuple[int, int]
"""The job, and how often it was started until then."""


@dataclass(frozen=True)
class Stored:
    """The lines and steps in Postgres, per lane, and the destroyed messages of which it has none."""

    items: Mapping[Lane, Counter[Item]]
    lost: Mapping[Lane, Mapping[int, list[Item]]]

    def items_of(self, job: int, kind: str) -> Counter[Item]:
        """Return the lines or steps of a job."""
        return sum((found for lane, found in self.items.items() if (lane[0], lane[2]) == (job, kind)), Counter())

    def lost_of(self, job: int, kind: str) -> Counter[Item]:
        """Return the lines or steps of a job that were destroyed for good."""
        lanes = [lost for lane, lost in self.lost.items() if (lane[0], lane[2]) == (job, kind)]
        return Counter(item for lost in lanes for items in lost.values() for item in items)

    def has_lost(self, job: int) -> bool:
        """Return whether messages of a job were destroyed for good."""
        return any(lost for lane, lost in self.lost.items() if lane[0] == job)


def read_stored(engine: Engine, destroyed: Mapping[Lane, Mapping[int, list[Item]]]) -> Stored:
    """Read all lines and points; return which destroyed messages are not among them."""
    items: dict[Lane, Counter[Item]] = {}
    for job, source, content in rows(engine, training_logs, "job_id", "source", "content"):
        items.setdefault((job, source, "logs"), Counter())[content] += 1
    for job, source, step in rows(engine, training_metrics, "job_id", "source", "step"):
        items.setdefault((job, source, "metrics"), Counter())[step] += 1
    lost = {
        lane: {seq: gone for seq, gone in messages.items() if not items.get(lane, Counter()).keys() & set(gone)}
        for lane, messages in destroyed.items()
    }
    return Stored(items, lost)


def read_sums(engine: Engine, gateway: GatewayAddress) -> dict[int, dict[str, Any]]:
    """Return the sum of each job as the gateway reports it (docs/http.md)."""
    jobs = rows(engine, training_jobs, "id", order=["id"])
    urls = {job: f"{gateway.url}/jobs/{job}/completeness" for job in jobs}
    return {job: requests.get(url, timeout=30).json() for job, url in urls.items()}


def check_sums(
    engine: Engine, sums: Mapping[int, dict[str, Any]], stored: Stored, living: Collection[int]
) -> None:
    """The numbers that the sums name as not stored are those of the destroyed messages.

    One loss has no number: the end of a killed trainer's spool. Its source is named instead.
    """
    named = read_named(engine, sums)
    wrong = []
    for lane in named.keys() | stored.lost.keys():
        job, source, _ = lane
        unnamed = set(stored.lost.get(lane, {})) - named.get(lane, set())
        more = named.get(lane, set()) - set(stored.lost.get(lane, {}))
        is_end = unnamed and min(unnamed) > max(named.get(lane, set()) | last_stored(engine, lane), default=0)
        if more or (unnamed and (job in living or not is_end or source not in unproven_sources(sums[job]))):
            wrong.append(
                f"{lane}: destroyed and not named: {sorted(unnamed)}, named and not destroyed: {sorted(more)}"
            )
    unsettled = [found["line"] for job, found in sums.items() if not is_settled(found, stored, job)]
    open_ends = [sums[job]["line"] for job in living if unproven_sources(sums[job])]
    assert not wrong + unsettled + open_ends, "\n".join(wrong + unsettled + open_ends)
    produced = sum(found["produced"] for found in sums.values())
    lost_count = sum(map(len, stored.lost.values()))
    print(
        f"  {len(sums)} jobs: {produced:,} messages produced, {lost_count} destroyed and named, all others stored"
    )


def is_settled(found: Mapping[str, Any], stored: Stored, job: int) -> bool:
    """Return whether the sum is balanced, and complete if nothing was destroyed."""
    lost = sum(found.get("lost", {}).values())
    parts = found["stored"] + found["dead_lettered"] + found["missing"] + lost + found["dropped"]
    is_whole = found["stored"] == found["produced"] and not found["open_sources"]
    return bool(found["produced"] == parts and not found["dropped"] and (is_whole or stored.has_lost(job)))


def unproven_sources(found: Mapping[str, Any]) -> set[str]:
    """Return the sources that may have produced more messages than the sum of their job counts."""
    return {*found["open_sources"], *found["silent_sources"]}


def last_stored(engine: Engine, lane: Lane) -> set[int]:
    """Return the newest stored number of a source and kind, as a set of one, or an empty set."""
    positions = rows(engine, source_positions, "job_id", "source", "kind", "last_seq", order=["job_id"])
    return {last_seq for *key, last_seq in positions if tuple(key) == lane}


def read_named(engine: Engine, sums: Mapping[int, dict[str, Any]]) -> dict[Lane, set[int]]:
    """Return the numbers that are named as not stored: missing and lost by the sums, and dead-lettered."""
    named: dict[Lane, set[int]] = {}
    for job, found in sums.items():
        for gap in [*found["gaps"], *found.get("losses", ())]:
            for first, last, *_ in gap["ranges"]:
                named.setdefault((job, gap["source"], gap["kind"]), set()).update(range(first, last + 1))
    for job, source, kind, seq in rows(engine, dead_letters, "job_id", "source", "kind", "seq", order=["id"]):
        named.setdefault((job, source, kind), set()).add(seq)
    return named


def check_living(engine: Engine, stored: Stored, counts: Mapping[int, dict[str, Any]]) -> None:
    """Compare the lines and points that living trainers and their children logged with the rows of Postgres."""
    incomplete = {
        job: found for job, found in counts.items() if not found["complete"] and not stored.has_lost(job)
    }
    assert not incomplete, f"receipts that are not complete: {incomplete}"
    statuses = dict(rows(engine, training_jobs, "id", "status", order=["id"]))
    unfinished = {job: statuses.get(job) for job in counts if statuses.get(job) != "completed"}
    assert not unfinished, f"jobs that have not completed: {unfinished}"
    for job, found in counts.items():
        lines = [f"life 1 line {number}" for number in range(found["lines"])]
        for child, exit_code in enumerate(found["children"]):
            assert exit_code == 0
            lines += [f"child {child} line {number}" for number in range(CHILD_LINES)]
        check_items(stored, job, "logs", Counter(lines))
        check_items(stored, job, "metrics", Counter(range(0, found["lines"], 10)))
    print(f"  {sum(found['lines'] for found in counts.values()):,} lines: none lost, none twice")


def check_items(stored: Stored, job: int, kind: str, expected: Counter[Item]) -> None:
    """Each line or step is stored once, or was destroyed."""
    found = stored.items_of(job, kind) + stored.lost_of(job, kind)
    gone, doubled = expected - found, found - expected
    assert not gone, f"{gone.total()} lost {kind} of job {job}: {[*gone][:5]}"
    assert not doubled, f"{doubled.total()} doubled {kind} of job {job}: {[*doubled][:5]}"


def check_killed(stored: Stored, certain_lines: Mapping[Life, int]) -> None:
    """Each line that a killed trainer logged long enough before its end is stored once, without a gap."""
    for (job, life), certain in certain_lines.items():
        prefix = f"life {life} line "
        both = stored.items_of(job, "logs") + stored.lost_of(job, "logs")
        lines = [item for item in both.elements() if isinstance(item, str) and item.startswith(prefix)]
        numbers = sorted(int(line.removeprefix(prefix)) for line in lines)
        assert numbers == list(range(len(numbers))), f"holes or doubles in the lines of job {job}, life {life}"
        assert len(numbers) >= certain, f"{len(numbers)} of {certain} lines of job {job}, life {life}"
    print(f"  {len(certain_lines)} killed trainers: {sum(certain_lines.values()):,} certain lines, all stored")


def check_lost(engine: Engine, killed: Collection[int]) -> None:
    """No job of a killed trainer stays `running`."""

    def running() -> dict[int, str]:
        statuses = rows(engine, training_jobs, "id", "status", order=["id"])
        return {job: status for job, status in statuses if job in killed and status != "lost"}

    wait_until(lambda: not running(), f"the loss of killed jobs: {running()}", 60)
