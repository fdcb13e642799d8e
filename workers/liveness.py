"""Which running jobs have stalled or are lost, and which are back (docs/liveness.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from schemas.heartbeats import Heartbeat
from schemas.messages import ATTEMPT_UNSAID, Status
from workers import job_rows, store
from workers.changes import StatusChange
from workers.decoding import visible
from workers.heartbeats import Heard

_SHOWN_RANKS: Final = 8
_UNREAD_SHARE: Final = 1 / 3
"""Of the time after which a job is lost: for how long messages of its shard may wait if it has no heartbeat."""


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


def watch(engine: Engine, heard: Heard, lost_after_s: float) -> list[StatusChange]:
    """Give every unfinished job the status that its heartbeats show; return what changed, once committed.

    Only an attempt that is watched is ever lost: one whose trainer stated that it sends heartbeats, or of which
    one is here, however old: it may have been written and its trainer killed while no worker ran.
    """
    with store.postgres_errors(), engine.begin() as connection:
        jobs = _read_jobs(connection, list(heard.beats))
        unwatched = [job for job in jobs if job.watched_attempt != job.attempt]
        if new := [job.id for job in unwatched if _sends_heartbeats(job, heard, lost_after_s)]:
            connection.execute(_WATCH, {"jobs": new})
    changed = [job.id for job in jobs if judge(job, heard, lost_after_s).status != job.status]
    return _change(engine, changed, heard, lost_after_s) if changed else []


def judge(job: WatchedJob, heard: Heard, lost_after_s: float) -> Verdict:
    """Return how an unfinished job stands; as it does where nothing can be said."""
    beats = _beats_of(job, heard)
    fresh = _fresh(beats, heard, lost_after_s)
    if fresh:
        return _stalled(job, beats, fresh, heard) or Verdict("running", reason="heard of again")
    unheard_s = min((heard.age_s(beat) for beat in beats), default=job.unseen_s)
    silent_s = min(heard.listened_s(job.id), _read_s(job, beats, unheard_s, heard, lost_after_s), job.unseen_s)
    if job.watched_attempt != job.attempt or job.status == "lost" or silent_s <= lost_after_s:
        return Verdict(job.status)
    last = f"; the last: {_shown(max(beats, key=lambda beat: beat.at))}" if beats else ""
    return Verdict("lost", min(unheard_s, job.unseen_s), f"no heartbeat for {lost_after_s:g} s{last}")


def _read_s(
    job: WatchedJob, beats: Sequence[Heartbeat], unheard_s: float, heard: Heard, lost_after_s: float
) -> float:
    """Return for how long nothing came after the last heartbeat, in what has been read of the job's shard.

    Its last message may be in what is unread. Without a heartbeat (a trainer that ends deletes its own) it may
    have been sent at any time: then the shard has to be read almost to its end.
    """
    unread_s = heard.unread_s(job.id)
    if beats:
        return unheard_s - unread_s
    return unheard_s if unread_s <= _UNREAD_SHARE * lost_after_s else 0.0


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


def _change(engine: Engine, job_ids: Iterable[int], heard: Heard, lost_after_s: float) -> list[StatusChange]:
    """Judge these jobs once more under their locks, for messages may have come; save what has changed."""
    changes = []
    with store.postgres_errors(), engine.begin() as connection:
        states = job_rows.lock_jobs(connection, job_ids)
        for job in _read_jobs(connection, list(states)):
            verdict = judge(job, heard, lost_after_s)
            if job.id not in states or verdict.status == job.status:
                continue
            before, after = states[job.id], copy(states[job.id])
            after.status = verdict.status
            after.quiet_since = heard.moment(job.id, verdict.quiet_s)
            after.status_reason = None if verdict.quiet_s is None else verdict.reason
            changes.append(StatusChange(before, after, verdict.reason))
        job_rows.save_statuses(connection, [change.after for change in changes])
        job_rows.save_attempts(connection, [change.after for change in changes])
    return changes


def _read_jobs(connection: Connection, with_beats: Sequence[int]) -> list[WatchedJob]:
    return [WatchedJob(*row) for row in connection.execute(_UNFINISHED, {"with_beats": with_beats})]


def _beats_of(job: WatchedJob, heard: Heard) -> list[Heartbeat]:
    """Return the heartbeats of the job's attempt; who does not say an attempt is in the newest."""
    return [beat for beat in heard.beats.get(job.id, ()) if beat.attempt in (ATTEMPT_UNSAID, job.attempt)]


def _sends_heartbeats(job: WatchedJob, heard: Heard, lost_after_s: float) -> bool:
    """Return whether there is a heartbeat that is surely of the job's attempt.

    An old one without an attempt may be of the attempt before, unless there is none before.
    """
    beats = _beats_of(job, heard)
    is_first = job.attempt <= 1
    return any(is_first or beat.attempt == job.attempt for beat in beats) or bool(
        _fresh(beats, heard, lost_after_s)
    )


def _fresh(beats: Iterable[Heartbeat], heard: Heard, lost_after_s: float) -> list[Heartbeat]:
    return [beat for beat in beats if heard.age_s(beat) <= lost_after_s]


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
