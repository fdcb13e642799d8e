"""The status of a job by its heartbeats."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.schemas.wire.heartbeats import Heartbeat
from trainwire.schemas.wire.messages import Status
from trainwire.workers.liveness.heartbeat_reader import Heartbeats
from trainwire.workers.liveness.job_status import LostRule, NewStatus, UnfinishedJob

NOW_MS = 1_790_000_000_000
RULE = LostRule(after_s=60.0)
LONG_S = 10_000.0


def beat(age_s: float = 1.0, **fields: Any) -> Heartbeat:
    """A heartbeat of job 1, so old."""
    return Heartbeat(**{"job": 1, "source": "0-a", "attempt": 1, "at": NOW_MS - int(age_s * 1000), **fields})


def judged(
    *beats: Heartbeat,
    status: Status = "running",
    watched: int | None = 1,
    unseen_s: float = LONG_S,
    listened_s: float = LONG_S,
    unread_s: float = 0.0,
) -> NewStatus:
    """Return the status of job 1, attempt 1, by these heartbeats."""
    unread_ms = [int(unread_s * 1000)]
    heard = Heartbeats([NOW_MS], [NOW_MS - int(listened_s * 1000)], {1: beats}, unread_ms=unread_ms)
    return RULE.evaluate(UnfinishedJob(1, 1, status, watched, unseen_s), heard)


@given(
    st.lists(
        st.builds(
            beat,
            st.floats(0, 120),
            attempt=st.sampled_from((0, 1, 2)),
            rank=st.integers(0, 3),
            quiet_s=st.floats(0, 2000),
            stall_after_s=st.none() | st.floats(0, 2000),
            usual_pause_s=st.none() | st.floats(0, 2000),
        ),
        max_size=4,
    ),
    st.floats(0, 200),
    st.floats(0, 200),
)
def test_jobs_that_are_not_evaluated_would_stay_running(
    beats: list[Heartbeat], unseen_s: float, listened_s: float
) -> None:
    """A running job that a check leaves out because of its heartbeats has the status `running` by all rules."""
    found = Heartbeats([NOW_MS], [NOW_MS - int(listened_s * 1000)], {1: beats}, unread_ms=[0])
    if RULE.keeps_running(beats, found):
        attempt = beats[0].attempt or 1
        job = UnfinishedJob(1, attempt, "running", attempt, unseen_s)
        assert RULE.evaluate(job, found).status == "running"


def test_a_usual_heartbeat_needs_no_evaluation() -> None:
    """Fresh heartbeats of one attempt suffice; old ones, long pauses and two attempts do not."""
    found = Heartbeats([NOW_MS], [NOW_MS - 10**6], {})
    assert RULE.keeps_running([beat(), beat(200)], found)
    assert RULE.keeps_running([beat(quiet_s=5.0, stall_after_s=6.0)], found)
    assert not RULE.keeps_running([beat(quiet_s=7.0, stall_after_s=6.0)], found)
    assert not RULE.keeps_running([beat(61)], found)
    assert not RULE.keeps_running([beat(), beat(attempt=2)], found)


def test_a_job_without_a_heartbeat_is_lost() -> None:
    """A job is lost 60 seconds after its last heartbeat, and the reason names its process."""
    verdict = judged(beat(61, rank=3, host="gpu-7", pid=12), beat(90))
    assert (verdict.status, verdict.quiet_s) == ("lost", 61)
    assert verdict.reason == "no heartbeat for 60 s; the last: rank 3, host gpu-7, pid 12"
    assert judged(beat(59)).status == "running"
    assert judged(beat(61), beat(2)).status == "running"


@pytest.mark.parametrize(
    "why",
    [
        {"listened_s": 59.0},  # Redis, the workers or beat were down
        {"unseen_s": 59.0},  # its messages still arrive
        {"watched": None},  # it never sent a heartbeat
        {"watched": 7},  # another attempt did
    ],
)
def test_unreadable_heartbeats_make_no_job_lost(why: dict[str, Any]) -> None:
    """A job is not lost if its heartbeats could not be read, its messages arrive, or it sends no heartbeats."""
    assert judged(beat(61), **why) == NewStatus("running")
    assert judged(**why) == NewStatus("running")


def test_a_backlog_delays_the_loss_and_does_not_prevent_it() -> None:
    """Messages of 60 s after the last heartbeat must be drained first; without a heartbeat, almost all."""
    assert judged(beat(1000), unread_s=939).status == "lost"
    assert judged(beat(1000), unread_s=941).status == "running"
    assert judged(unread_s=19).status == "lost"
    assert judged(unread_s=21).status == "running"


def test_reads_of_the_heartbeats_may_be_a_third_of_the_time_apart() -> None:
    """A longer gap between reads restarts the count; a worker that reads every two seconds has none."""
    assert RULE.longest_gap_s == RULE.longest_unread_s == 20
    assert LostRule(after_s=6).longest_gap_s == 4


def test_redis_has_forgotten_the_heartbeats_of_a_dead_trainer() -> None:
    """A job is lost also if Redis lost its heartbeats, because it has sent some."""
    verdict = judged(unseen_s=100)
    assert (verdict.status, verdict.quiet_s, verdict.reason) == ("lost", 100, "no heartbeat for 60 s")


def test_a_heartbeat_takes_the_job_back() -> None:
    """A heartbeat of this or an unknown attempt makes a job running; an old one or another attempt's does not."""
    assert judged(beat(), status="lost").status == "running"
    assert judged(beat(attempt=0), status="lost").status == "running"
    assert judged(beat(attempt=2), status="lost").status == "lost"
    assert judged(beat(61), status="lost").status == "lost"


def test_a_heartbeat_from_the_future_is_as_old_as_the_listening() -> None:
    """After the clock of Redis was set back by an hour, a trainer without further heartbeats is lost in time."""
    assert judged(beat(-3600), listened_s=59).status == "running"
    assert judged(beat(-3600), listened_s=61).status == "lost"


def test_a_pause_over_the_stated_one_is_a_stall() -> None:
    """The shortest pause of all processes and the longest stated interval count; the usual pause does not."""
    verdict = judged(beat(quiet_s=91, stall_after_s=90, host="gpu-7"), beat(quiet_s=95, source="launcher"))
    assert (verdict.status, verdict.quiet_s) == ("stalled", 91)
    assert verdict.reason == "alive (host gpu-7), but it is quiet for more than its stall_after_s of 90 s"
    assert judged(beat(quiet_s=90, stall_after_s=90)).status == "running"
    assert judged(beat(quiet_s=91, stall_after_s=90), beat(quiet_s=5, stall_after_s=90)).status == "running"
    assert judged(beat(quiet_s=91, stall_after_s=90), beat(quiet_s=5)).status == "running"  # it prints
    assert judged(beat(quiet_s=5000, stall_after_s=9000, usual_pause_s=600)).status == "running"


def test_an_unusual_pause_is_a_stall() -> None:
    """Without a stated interval a job stalls after a pause longer than the slowest rhythm of its processes."""
    verdict = judged(beat(quiet_s=601, usual_pause_s=600, pid=7))
    assert verdict.reason == "alive (pid 7), but it is usually not quiet for more than 600 s"
    assert verdict.status == "stalled"
    assert judged(beat(quiet_s=601, usual_pause_s=600), beat(quiet_s=10)).status == "running"
    assert judged(beat(quiet_s=601, usual_pause_s=600), beat(quiet_s=700, usual_pause_s=3000)).status == "running"
    assert judged(beat(quiet_s=100_000)).status == "running"


def test_a_stalled_job_names_the_ranks_that_are_silent() -> None:
    """If one rank has died and the others wait for it, the reason names the rank."""
    alive = [beat(quiet_s=99, stall_after_s=60, rank=rank) for rank in (0, 1)]
    reason = judged(*alive, beat(300, rank=2), beat(300, rank=1)).reason
    assert reason is not None
    assert reason.endswith("; no heartbeat of rank 2")


def test_a_message_is_newer_than_the_heartbeat_before_it() -> None:
    """A heartbeat does not stall a job whose messages were stored after it; the next heartbeat decides."""
    quiet = {"quiet_s": 99, "stall_after_s": 60}
    assert judged(beat(5, **quiet), unseen_s=3).status == "running"
    assert judged(beat(5, **quiet), unseen_s=7).status == "stalled"
    assert judged(beat(5), unseen_s=7, status="stalled").status == "running"
