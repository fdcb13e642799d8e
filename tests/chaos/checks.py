"""Checks after a chaos run: every message that could survive is stored once, the others are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from schemas.tables import dead_letters, source_positions, training_jobs, training_logs, training_metrics
from stores.completeness import Completeness, assess
from stores.positions import find_positions
from tests.chaos.spool_damage import Item, Lane
from tests.chaos.trainer import CHILD_LINES
from tests.factories import rows
from tests.processes import wait_until

Life = tuple[int, int]
"""Job, and how often it was started by then."""


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


def read_stored(engine: Engine, destroyed: Mapping[Lane, Mapping[int, list[Item]]]) -> Stored:
    """Read all lines and points; find out which destroyed messages are not among them."""
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


def check_sums(engine: Engine, stored: Stored, living: Collection[int], killed: Collection[int]) -> None:
    """Of every source, what the sum names as not stored is what was destroyed, by number; nothing else is open.

    Only one loss has no number: the end of a killed trainer's spool. Its source is named instead.
    """
    with engine.connect() as connection:
        attempts = dict(rows(engine, training_jobs, "id", "attempt", order=["id"]))
        sums = {job: assess(find_positions(connection, job), attempt) for job, attempt in attempts.items()}
    assert set(living) <= sums.keys() <= {*living, *killed}
    named = read_named(engine)
    columns = ("job_id", "source", "kind", "last_seq")
    found = rows(engine, source_positions, *columns, order=["job_id"])
    last_seqs = {(job, source, kind): last for job, source, kind, last in found}
    wrong = {}
    for lane in named.keys() | stored.lost.keys():
        lost = set(stored.lost.get(lane, {}))
        unknown = {seq for seq in lost if seq > last_seqs.get(lane, 0)}
        if unknown and lane[0] in living:
            wrong[lane] = f"destroyed and not named: {unknown}"
        if unknown and lane[1] not in {*sums[lane[0]].silent_sources, *sums[lane[0]].open_sources}:
            wrong[lane] = f"destroyed, and its source is not named: {unknown}"
        if named.get(lane, set()) != lost - unknown:
            wrong[lane] = f"named: {named.get(lane)}, lost: {lost}"
    assert wrong == {}
    unsettled = {job: found.line for job, found in sums.items() if not is_settled(found, stored, job)}
    assert unsettled == {}
    assert not any(sums[job].silent_sources for job in living)
    lost_count = sum(map(len, stored.lost.values()))
    produced = sum(found.produced for found in sums.values())
    print(
        f"  {len(sums)} jobs: {produced:,} messages produced, {lost_count} destroyed and named, all others stored"
    )


def is_settled(found: Completeness, stored: Stored, job: int) -> bool:
    """Tell whether the sum adds up and no source is open, but one whose whole spool was destroyed."""
    adds_up = found.produced == found.stored + found.dead_lettered + found.missing + found.dropped
    has_lost = any(lost for lane, lost in stored.lost.items() if lane[0] == job)
    return adds_up and not found.dropped and (has_lost or found.state == "complete")


def read_named(engine: Engine) -> dict[Lane, set[int]]:
    """Return the numbers that Postgres names as not stored: missing, and dead-lettered."""
    named: dict[Lane, set[int]] = {}
    for job, source, kind, missing in rows(
        engine, source_positions, "job_id", "source", "kind", "missing", order=["job_id"]
    ):
        for first, last in missing:
            named.setdefault((job, source, kind), set()).update(range(first, last + 1))
    for job, source, kind, seq in rows(engine, dead_letters, "job_id", "source", "kind", "seq", order=["id"]):
        named.setdefault((job, source, kind), set()).add(seq)
    return named


def check_living(engine: Engine, stored: Stored, counts: Mapping[int, dict[str, Any]]) -> None:
    """Compare the lines and points that living trainers and their children logged with the rows of Postgres."""
    assert {job: found["complete"] for job, found in counts.items()} == dict.fromkeys(counts, True)
    statuses = dict(rows(engine, training_jobs, "id", "status", order=["id"]))
    assert {job: statuses.get(job) for job in counts} == dict.fromkeys(counts, "completed")
    for job, found in counts.items():
        lines = [f"life 1 line {number}" for number in range(found["lines"])]
        for child, exit_code in enumerate(found["children"]):
            assert exit_code == 0
            lines += [f"child {child} line {number}" for number in range(CHILD_LINES)]
        assert stored.items_of(job, "logs") + stored.lost_of(job, "logs") == Counter(lines)
        steps = Counter(range(0, found["lines"], 10))
        assert stored.items_of(job, "metrics") + stored.lost_of(job, "metrics") == steps
    print(f"  {sum(found['lines'] for found in counts.values()):,} lines: none lost, none twice")


def check_killed(stored: Stored, certain_lines: Mapping[Life, int]) -> None:
    """Of a killed trainer every line is stored that it logged long enough before its end: once, without a gap."""
    for (job, life), certain in certain_lines.items():
        prefix = f"life {life} line "
        both = stored.items_of(job, "logs") + stored.lost_of(job, "logs")
        lines = [item for item in both.elements() if isinstance(item, str) and item.startswith(prefix)]
        numbers = sorted(int(line.removeprefix(prefix)) for line in lines)
        assert numbers == list(range(len(numbers))), (job, life)
        assert len(numbers) >= certain, (job, life)
    print(f"  {len(certain_lines)} killed trainers: {sum(certain_lines.values()):,} certain lines, all stored")


def check_lost(engine: Engine, killed: Collection[int]) -> None:
    """No job of a killed trainer stays `running`."""

    def running() -> dict[int, str]:
        statuses = rows(engine, training_jobs, "id", "status", order=["id"])
        return {job: status for job, status in statuses if job in killed and status != "lost"}

    wait_until(lambda: not running(), f"the loss of killed jobs: {running()}", 60)
