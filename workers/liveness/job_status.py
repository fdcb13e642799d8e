"""Sets the status of jobs to `stalled`, `lost` or back to `running`, from their heartbeats (docs/liveness.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, text

from trainwire.schemas.wire.heartbeats import Heartbeat
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN, Status
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.drain import job_rows, store
from trainwire.workers.drain.changes import StatusChange
from trainwire.workers.liveness.heartbeat_reader import Heartbeats

log = structlog.get_logger("trainwire.workers.liveness.job_status")

_SHOWN_RANKS: Final = 8
_LEAST_GAP_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class UnfinishedJob:
    """The columns of a running, stalled or lost job from which its status is computed."""

    id: int
    attempt: int
    status: Status
    watched_attempt: int | None
    """The newest attempt that is known to send heartbeats, or None."""
    unseen_s: float
    """Seconds since the last message of the job was stored."""


@dataclass(frozen=True, slots=True)
class NewStatus:
    """The status to set for a job; for `stalled` and `lost`, the seconds since it last sent anything.

    `reason` describes why a status changes.
    """

    status: Status
    quiet_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LostRule:
    """A job is lost if nothing of it arrived for `after_s` seconds in which a heartbeat could have arrived.

    Only attempts that are known to send heartbeats become lost (`sends_heartbeats`).
    """

    after_s: float

    @property
    def longest_gap_s(self) -> float:
        """Maximum time in seconds between two reads of the heartbeats.

        After a longer time without a read, heartbeats may have been overlooked, and waiting for `after_s` starts
        again.
        """
        return max(_LEAST_GAP_S, self.after_s / 3)

    @property
    def longest_unread_s(self) -> float:
        """Maximum time in seconds that messages may wait for a drain.

        While messages wait longer, no job without a heartbeat becomes lost.
        """
        return self.after_s / 3

    def evaluate(self, job: UnfinishedJob, heartbeats: Heartbeats) -> NewStatus:
        """Return the status that an unfinished job should have; without evidence, it keeps its present status."""
        beats = _beats_of(job, heartbeats)
        if fresh := self._fresh(beats, heartbeats):
            return _stalled(job, beats, fresh, heartbeats) or NewStatus(
                "running", reason="its heartbeats are back"
            )
        silent_s = min((heartbeats.age_s(beat) for beat in beats), default=job.unseen_s)
        surely_silent_s = min(
            heartbeats.covered_s(job.id), self._read_s(job, beats, silent_s, heartbeats), job.unseen_s
        )
        if job.watched_attempt != job.attempt or job.status == "lost" or surely_silent_s <= self.after_s:
            return NewStatus(job.status)
        last = f"; the last: {_shown(max(beats, key=lambda beat: beat.at))}" if beats else ""
        return NewStatus("lost", min(silent_s, job.unseen_s), f"no heartbeat for {self.after_s:g} s{last}")

    def keeps_running(self, beats: Sequence[Heartbeat], heartbeats: Heartbeats) -> bool:
        """Return whether these heartbeats of a job suffice to prove that `evaluate` leaves it `running`.

        They are of a single attempt, which must be the newest and known to send heartbeats. Of 10,000 running
        jobs, this keeps nearly all from being read from Postgres and evaluated at each check.
        """
        fresh = self._fresh(beats, heartbeats)
        if not fresh or (len(beats) > 1 and any(beat.attempt != beats[0].attempt for beat in beats)):
            return False
        return min(beat.quiet_s for beat in fresh) <= min(map(_limit_s, fresh))

    def sends_heartbeats(self, job: UnfinishedJob, heartbeats: Heartbeats) -> bool:
        """Return whether a heartbeat of any age certainly belongs to the newest attempt of the job.

        Without an attempt number, an old heartbeat may belong to the previous attempt. Old ones count because the
        trainer may have been killed while no worker ran.
        """
        beats = _beats_of(job, heartbeats)
        is_certain = job.attempt <= 1 or any(beat.attempt == job.attempt for beat in beats)
        return bool(beats) and (is_certain or bool(self._fresh(beats, heartbeats)))

    def _read_s(
        self, job: UnfinishedJob, beats: Sequence[Heartbeat], silent_s: float, heartbeats: Heartbeats
    ) -> float:
        """Return how many of the `silent_s` seconds surely had no message of the job, drained or not.

        With heartbeats, this is the time from the last one until the oldest message waiting in the shard's streams
        was sent; negative if that message is older. Without any (a trainer deletes its heartbeat when it ends), a
        waiting message may have been sent at any time: then it is all of `silent_s` if none has waited longer than
        `longest_unread_s`, else 0.
        """
        unread_s = heartbeats.unread_s(job.id)
        if beats:
            return silent_s - unread_s
        return silent_s if unread_s <= self.longest_unread_s else 0.0

    def _fresh(self, beats: Iterable[Heartbeat], heartbeats: Heartbeats) -> list[Heartbeat]:
        return [beat for beat in beats if heartbeats.age_s(beat) <= self.after_s]


def update_statuses(engine: Engine, heartbeats: Heartbeats, rule: LostRule) -> list[StatusChange]:
    """Set the status of each running, stalled or lost job from its heartbeats; return the committed changes.

    Jobs are examined if they have heartbeats or, except lost ones, are known to send them. Also records in
    `watched_attempt` which attempts send heartbeats, when the first one is found. Raises `Unavailable` if Postgres
    does not answer.
    """
    with store.postgres_errors(), engine.begin() as connection:
        jobs = _read_jobs(connection, heartbeats, rule)
        unwatched = [job for job in jobs if job.watched_attempt != job.attempt]
        if new := [job.id for job in unwatched if rule.sends_heartbeats(job, heartbeats)]:
            connection.execute(_WATCH, {"jobs": new})
    changed = [job.id for job in jobs if rule.evaluate(job, heartbeats).status != job.status]
    return _change(engine, changed, heartbeats, rule) if changed else []


def _stalled(
    job: UnfinishedJob, beats: Sequence[Heartbeat], fresh: Sequence[Heartbeat], heartbeats: Heartbeats
) -> NewStatus | None:
    """Return `stalled` for a job that is alive, but has been quiet for longer than its limit; else None.

    The limit is its `stall_after_s` or, if that is not set, its usual pause. If a message was stored after the
    last heartbeat, the present status is returned, unless that is `lost`.
    """
    if job.unseen_s < min(heartbeats.age_s(beat) for beat in fresh):
        return None if job.status == "lost" else NewStatus(job.status)  # a message was stored after the heartbeat
    quiet_s = min(beat.quiet_s for beat in fresh)
    stated = [beat.stall_after_s for beat in fresh if beat.stall_after_s is not None]
    usual = [beat.usual_pause_s for beat in fresh if beat.usual_pause_s is not None]
    limit_s = max(stated or usual, default=quiet_s)
    if quiet_s <= limit_s:
        return None
    pause = "is quiet for more than its stall_after_s of" if stated else "is usually not quiet for more than"
    missing = _silent_ranks(beats, fresh)
    silent = f"; no heartbeat of rank {missing}" if missing else ""
    return NewStatus("stalled", quiet_s, f"alive ({_shown(fresh[0])}), but it {pause} {limit_s:g} s{silent}")


def _change(engine: Engine, job_ids: Iterable[int], heartbeats: Heartbeats, rule: LostRule) -> list[StatusChange]:
    """Evaluate the jobs again with their rows locked, and save the changes of status.

    New messages may have been stored since the first evaluation.
    """
    changes = []
    with store.postgres_errors(), engine.begin() as connection:
        states = job_rows.lock_jobs(connection, job_ids)
        for job in _locked_jobs(connection, states):
            new = rule.evaluate(job, heartbeats)
            if job.id not in states or new.status == job.status:
                continue
            before, after = states[job.id], copy(states[job.id])
            after.status = new.status
            after.quiet_since = heartbeats.time_ago(job.id, new.quiet_s)
            after.status_reason = None if new.quiet_s is None else new.reason
            changes.append(StatusChange(before, after, new.reason))
        job_rows.save_statuses(connection, [change.after for change in changes])
        job_rows.save_attempts(connection, [change.after for change in changes])
    for change in changes:
        log.info("job.status", job_id=change.after.id, status=change.after.status, reason=change.reason)
    return changes


def _read_jobs(connection: Connection, heartbeats: Heartbeats, rule: LostRule) -> list[UnfinishedJob]:
    """Return the unfinished jobs that send or sent heartbeats, without those that surely stay `running`."""
    attempts = {
        job_id: beats[0].attempt
        for job_id, beats in heartbeats.beats.items()
        if rule.keeps_running(beats, heartbeats)
    }
    known = {job_id: attempt for job_id, attempt in attempts.items() if attempt != ATTEMPT_UNKNOWN}
    running_any = [job_id for job_id, attempt in attempts.items() if attempt == ATTEMPT_UNKNOWN]
    arguments = {
        "with_beats": store.numbers_array(heartbeats.beats),
        "running": store.numbers_array(known),
        "attempts": store.numbers_array(known.values()),
        "running_any": store.numbers_array(running_any),
    }
    return [UnfinishedJob(*row) for row in connection.execute(_UNFINISHED, arguments)]


def _locked_jobs(connection: Connection, job_ids: Iterable[int]) -> list[UnfinishedJob]:
    return [UnfinishedJob(*row) for row in connection.execute(_OF_IDS, {"jobs": list(job_ids)})]


def _beats_of(job: UnfinishedJob, heartbeats: Heartbeats) -> list[Heartbeat]:
    """Return the heartbeats of the job's newest attempt; those without an attempt number are included."""
    return [beat for beat in heartbeats.beats.get(job.id, ()) if beat.attempt in (ATTEMPT_UNKNOWN, job.attempt)]


def _limit_s(beat: Heartbeat) -> float:
    """Return the pause after which a source counts as stalled if its job has no other source."""
    limits_s = (beat.stall_after_s, beat.usual_pause_s)
    return next((limit_s for limit_s in limits_s if limit_s is not None), math.inf)


def _silent_ranks(beats: Iterable[Heartbeat], fresh: Iterable[Heartbeat]) -> str:
    ranks = sorted({beat.rank or 0 for beat in beats} - {beat.rank or 0 for beat in fresh})
    more = f" and {len(ranks) - _SHOWN_RANKS} more" if len(ranks) > _SHOWN_RANKS else ""
    return ", ".join(map(str, ranks[:_SHOWN_RANKS])) + more


def _shown(beat: Heartbeat) -> str:
    known: Mapping[str, Any] = {"rank": beat.rank, "host": beat.host, "pid": beat.pid}
    shown = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return storable_text(shown or beat.source)


_COLUMNS: Final = (
    "SELECT id, attempt, status, watched_attempt, "
    "CAST(extract(epoch FROM now() - coalesce(last_seen_at, created_at)) AS double precision) FROM training_jobs"
)
_UNFINISHED: Final = text(
    f"""
    {_COLUMNS}
    WHERE (
        (status IN ('running', 'stalled') AND watched_attempt = attempt)
        OR (status IN ('running', 'stalled', 'lost') AND id = ANY(CAST(:with_beats AS bigint[])))
    ) AND NOT (
        status = 'running' AND watched_attempt = attempt AND (
            id = ANY(CAST(:running_any AS bigint[]))
            OR (id, attempt) IN (SELECT * FROM unnest(CAST(:running AS bigint[]), CAST(:attempts AS integer[])))
        )
    )
    ORDER BY id
    """  # noqa: S608 - our own columns
)
_OF_IDS: Final = text(
    f"{_COLUMNS} WHERE id = ANY(CAST(:jobs AS bigint[])) AND status IN ('running', 'stalled', 'lost') ORDER BY id"
)

# Locked in the order in which drains lock them.
_WATCH: Final = text(
    """
    WITH locked AS (SELECT id FROM training_jobs WHERE id = ANY(CAST(:jobs AS bigint[])) ORDER BY id FOR UPDATE)
    UPDATE training_jobs AS job SET watched_attempt = attempt FROM locked WHERE job.id = locked.id
    """
)
