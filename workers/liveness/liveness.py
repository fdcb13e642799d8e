"""Which running jobs have stalled or are lost, and which are back (docs/liveness.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, text

from trainwire.schemas.heartbeats import Heartbeat
from trainwire.schemas.messages import ATTEMPT_UNKNOWN, Status
from trainwire.workers.drain import job_rows, store
from trainwire.workers.drain.changes import StatusChange
from trainwire.workers.drain.decoding import visible
from trainwire.workers.liveness.heartbeats import Heard

log = structlog.get_logger("trainwire.workers.liveness.liveness")

_SHOWN_RANKS: Final = 8
_LEAST_GAP_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class WatchedJob:
    """An unfinished job; `unseen_s` since the last message was stored."""

    id: int
    attempt: int
    status: Status
    watched_attempt: int | None
    unseen_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job is to stand; `quiet_s` since when it has said, or was heard of, nothing."""

    status: Status
    quiet_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LostRule:
    """When a job is lost: nothing of it arrived for `after_s` seconds in which a heartbeat could have arrived.

    Only an attempt that is watched is ever lost (`sends_heartbeats`).
    """

    after_s: float

    @property
    def longest_gap_s(self) -> float:
        """Longest time between two reads of the heartbeats; after a longer one `after_s` is counted anew."""
        return max(_LEAST_GAP_S, self.after_s / 3)

    @property
    def longest_unread_s(self) -> float:
        """Longest time that a message of the shard may wait for its drain where the job has no heartbeat."""
        return self.after_s / 3

    def judge(self, job: WatchedJob, heard: Heard) -> Verdict:
        """Return the status of an unfinished job; its present one where there is no evidence for another."""
        beats = _beats_of(job, heard)
        if fresh := self._fresh(beats, heard):
            return _stalled(job, beats, fresh, heard) or Verdict("running", reason="heard of again")
        unheard_s = min((heard.age_s(beat) for beat in beats), default=job.unseen_s)
        silent_s = min(heard.listened_s(job.id), self._read_s(job, beats, unheard_s, heard), job.unseen_s)
        if job.watched_attempt != job.attempt or job.status == "lost" or silent_s <= self.after_s:
            return Verdict(job.status)
        last = f"; the last: {_shown(max(beats, key=lambda beat: beat.at))}" if beats else ""
        return Verdict("lost", min(unheard_s, job.unseen_s), f"no heartbeat for {self.after_s:g} s{last}")

    def sends_heartbeats(self, job: WatchedJob, heard: Heard) -> bool:
        """Return whether there is a heartbeat that is surely of the job's attempt, however old.

        An old one without an attempt may be of the attempt before, unless there is none before. It may have been
        written, and its trainer killed, while no worker ran.
        """
        beats = _beats_of(job, heard)
        is_surely_of_it = job.attempt <= 1 or any(beat.attempt == job.attempt for beat in beats)
        return bool(beats) and (is_surely_of_it or bool(self._fresh(beats, heard)))

    def _read_s(self, job: WatchedJob, beats: Sequence[Heartbeat], unheard_s: float, heard: Heard) -> float:
        """Return for how long nothing came after the last heartbeat, in what has been read of the job's shard.

        Its last message may be in what is unread. Without a heartbeat (a trainer that ends deletes its own) it may
        have been sent at any time: then the shard has to be read almost to its end.
        """
        unread_s = heard.unread_s(job.id)
        if beats:
            return unheard_s - unread_s
        return unheard_s if unread_s <= self.longest_unread_s else 0.0

    def _fresh(self, beats: Iterable[Heartbeat], heard: Heard) -> list[Heartbeat]:
        return [beat for beat in beats if heard.age_s(beat) <= self.after_s]


def watch(engine: Engine, heard: Heard, rule: LostRule) -> list[StatusChange]:
    """Give every unfinished job the status that its heartbeats show; return what changed, once committed.

    An attempt is watched once its trainer stated that it sends heartbeats, or once one of it is found.
    """
    with store.postgres_errors(), engine.begin() as connection:
        jobs = _read_jobs(connection, list(heard.beats))
        unwatched = [job for job in jobs if job.watched_attempt != job.attempt]
        if new := [job.id for job in unwatched if rule.sends_heartbeats(job, heard)]:
            connection.execute(_WATCH, {"jobs": new})
    changed = [job.id for job in jobs if rule.judge(job, heard).status != job.status]
    return _change(engine, changed, heard, rule) if changed else []


def _stalled(
    job: WatchedJob, beats: Sequence[Heartbeat], fresh: Sequence[Heartbeat], heard: Heard
) -> Verdict | None:
    """Return the verdict on a job that lives and has been quiet for longer than it promised, or than is usual."""
    if job.unseen_s < min(heard.age_s(beat) for beat in fresh):
        return None if job.status == "lost" else Verdict(job.status)  # what was stored since is newer
    quiet_s = min(beat.quiet_s for beat in fresh)
    promised = [beat.stall_after_s for beat in fresh if beat.stall_after_s is not None]
    usual = [beat.usual_pause_s for beat in fresh if beat.usual_pause_s is not None]
    limit_s = max(promised or usual, default=quiet_s)
    if quiet_s <= limit_s:
        return None
    said = "promised a word every" if promised else "is usually not quiet for more than"
    missing = _silent_ranks(beats, fresh)
    silent = f"; no heartbeat of rank {missing}" if missing else ""
    return Verdict("stalled", quiet_s, f"alive ({_shown(fresh[0])}), but it {said} {limit_s:g} s{silent}")


def _change(engine: Engine, job_ids: Iterable[int], heard: Heard, rule: LostRule) -> list[StatusChange]:
    """Judge these jobs once more under their locks, for messages may have come; save what has changed."""
    changes = []
    with store.postgres_errors(), engine.begin() as connection:
        states = job_rows.lock_jobs(connection, job_ids)
        for job in _read_jobs(connection, list(states)):
            verdict = rule.judge(job, heard)
            if job.id not in states or verdict.status == job.status:
                continue
            before, after = states[job.id], copy(states[job.id])
            after.status = verdict.status
            after.quiet_since = heard.moment(job.id, verdict.quiet_s)
            after.status_reason = None if verdict.quiet_s is None else verdict.reason
            changes.append(StatusChange(before, after, verdict.reason))
        job_rows.save_statuses(connection, [change.after for change in changes])
        job_rows.save_attempts(connection, [change.after for change in changes])
    for change in changes:
        log.info("job.status", job_id=change.after.id, status=change.after.status, reason=change.reason)
    return changes


def _read_jobs(connection: Connection, with_beats: Sequence[int]) -> list[WatchedJob]:
    return [WatchedJob(*row) for row in connection.execute(_UNFINISHED, {"with_beats": with_beats})]


def _beats_of(job: WatchedJob, heard: Heard) -> list[Heartbeat]:
    """Return the heartbeats of the job's attempt; who does not say an attempt is in the newest."""
    return [beat for beat in heard.beats.get(job.id, ()) if beat.attempt in (ATTEMPT_UNKNOWN, job.attempt)]


def _silent_ranks(beats: Iterable[Heartbeat], fresh: Iterable[Heartbeat]) -> str:
    ranks = sorted({beat.rank or 0 for beat in beats} - {beat.rank or 0 for beat in fresh})
    more = f" and {len(ranks) - _SHOWN_RANKS} more" if len(ranks) > _SHOWN_RANKS else ""
    return ", ".join(map(str, ranks[:_SHOWN_RANKS])) + more


def _shown(beat: Heartbeat) -> str:
    known: Mapping[str, Any] = {"rank": beat.rank, "host": beat.host, "pid": beat.pid}
    shown = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return visible(shown or beat.source)


_UNFINISHED: Final = text(
    """
    SELECT id, attempt, status, watched_attempt,
        CAST(extract(epoch FROM now() - coalesce(last_seen_at, created_at)) AS double precision)
    FROM training_jobs
    WHERE (status IN ('running', 'stalled') AND watched_attempt = attempt)
        OR (status IN ('running', 'stalled', 'lost') AND id = ANY(CAST(:with_beats AS bigint[])))
    ORDER BY id
    """
)

# Locked in the order in which drains lock them.
_WATCH: Final = text(
    """
    WITH locked AS (SELECT id FROM training_jobs WHERE id = ANY(CAST(:jobs AS bigint[])) ORDER BY id FOR UPDATE)
    UPDATE training_jobs AS job SET watched_attempt = attempt FROM locked WHERE job.id = locked.id
    """
)
