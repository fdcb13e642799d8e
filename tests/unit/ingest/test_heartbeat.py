"""Heartbeats: usual pauses, and the difference between a live rival and the claim of a killed process."""

from __future__ import annotations

import logging
import os
from typing import Any

import msgspec
import pytest

from tests.factories import checkpoint, completion, logs, metrics
from trainwire import Run, TrainerSettings
from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sending.heartbeat import (
    LEAST_PAUSES,
    LEAST_USUAL_PAUSE_S,
    SourceHeartbeat,
    StopSignal,
    UnsentCounts,
)
from trainwire.ingest.settings.setting_groups import Vitals
from trainwire.schemas.wire.heartbeats import Heartbeat, decode_heartbeat, encode_heartbeat, shows_progress
from trainwire.schemas.wire.messages import Metrics, Point, Progress
from trainwire.schemas.wire.stop_requests import StopRequest
from trainwire.schemas.wire.validation import InvalidMessage


class Process:
    """A process whose clock and reports the test sets."""

    def __init__(self, source: str = "0-a", attempt: int = 1, vitals: Vitals | None = None) -> None:
        self.now = 1000.0
        self.reports = 0
        origin = Origin(42, attempt, source, 3)
        self.heartbeat = SourceHeartbeat(origin, vitals or Vitals(), lambda: self.reports, clock=lambda: self.now)

    def beat(self, after_s: float = 10.0, reports: int = 0) -> Heartbeat:
        """Return the next heartbeat, `after_s` later, with so many more reports."""
        self.now += after_s
        self.reports += reports
        return self.heartbeat.heartbeat(int(self.now * 1000))

    def claim(self) -> Heartbeat:
        """Return the claim of the process, ten seconds later."""
        self.now += 10
        return self.heartbeat.claim(int(self.now * 1000))

    def finds(self, other: Heartbeat | None) -> bool:
        """Return whether the process may claim its rank, given this claim."""
        return self.heartbeat.may_take(None if other is None else encode_heartbeat(other))


def test_a_heartbeat_says_who_lives_and_for_how_long_it_is_quiet() -> None:
    """It has the source, the time, the stated pause, and the seconds since the last new report."""
    process = Process(vitals=Vitals(stall_after_s=90))
    process.beat(reports=1)
    process.beat()
    beat = process.beat()
    assert (beat.job, beat.attempt, beat.source, beat.rank, beat.at) == (42, 1, "0-a", 3, 1_030_000)
    assert (beat.quiet_s, beat.stall_after_s, beat.usual_pause_s) == (20, 90, None)
    assert beat.host
    assert decode_heartbeat(encode_heartbeat(beat)) == beat
    assert process.beat(reports=1).quiet_s == 0


def test_a_heartbeat_says_what_has_not_got_through() -> None:
    """Unsent, spooled and dropped counts are current in each heartbeat, and absent without a source of counts."""
    counts = iter([UnsentCounts(unsent=3, spooled_bytes=400, dropped=0), UnsentCounts(0, 0, 5)])
    heartbeat = SourceHeartbeat(Origin(42, 1, "0-a", 3), Vitals(), lambda: 0, unsent_counts=lambda: next(counts))
    first, second = (decode_heartbeat(encode_heartbeat(heartbeat.heartbeat(at))) for at in (1, 2))
    assert (first.unsent, first.spooled_bytes, first.dropped) == (3, 400, 0)
    assert (second.unsent, second.spooled_bytes, second.dropped) == (0, 0, 5)
    silent = Process().beat()
    assert (silent.unsent, silent.spooled_bytes, silent.dropped) == (None, None, None)


def test_the_rhythm_is_known_after_some_pauses() -> None:
    """Three times the longest pause, at least ten minutes; nothing before there were enough of them."""
    process = Process()
    beats = [process.beat(reports=5) for _ in range(LEAST_PAUSES + 1)]
    assert beats[-2].usual_pause_s is None
    assert beats[-1].usual_pause_s == LEAST_USUAL_PAUSE_S
    assert process.beat(after_s=700).usual_pause_s == LEAST_USUAL_PAUSE_S  # a pause counts when it is over
    assert process.beat(reports=1).usual_pause_s == pytest.approx(3 * 710)


def test_the_next_heartbeat_is_due_after_the_interval_or_soon_after_a_refusal() -> None:
    """The first at once; one that Redis refused a fifth of the interval later."""
    process = Process(vitals=Vitals(interval_s=10))
    heartbeat = process.heartbeat
    assert heartbeat.is_due
    heartbeat.note_outcome(is_taken=False)
    process.now += 2
    assert (heartbeat.is_due, heartbeat.is_known) == (True, False)
    heartbeat.note_outcome(is_taken=True)
    process.now += 9
    assert (heartbeat.is_due, heartbeat.is_known) == (False, True)
    process.now += 1
    assert heartbeat.is_due


def test_a_rival_that_lives_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """The second time its claim is newer: one warning with both processes and the remedy, and no claim."""
    first, second = Process("0-a"), Process("0-b")
    with caplog.at_level(logging.WARNING):
        assert not second.finds(first.claim())
        assert not caplog.records
        for _ in range(3):
            assert not second.finds(first.claim())
    (record,) = caplog.records
    said = record.getMessage()
    assert "two live trainers are job 42 attempt 1 rank 3: this one (host " in said
    assert "TRAINWIRE_RANK" in said
    assert said.count("pid ") == 2
    assert first.finds(first.claim())


def test_what_a_killed_process_left_warns_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A claim that is not renewed expires; a malformed claim is replaced."""
    left = Process("0-a").claim()
    second = Process("0-b")
    assert [second.finds(left) for _ in range(5)] == [False] * 5
    assert second.finds(None)
    assert second.heartbeat.may_take(b"garbage")
    assert not caplog.records


def test_a_claim_does_not_contain_the_name_of_the_source() -> None:
    """All trainers can read claims, and the name of a source would let them send as it."""
    claim = Process("0-a1b2c3d4e5f6a7b8c9d0e1f2").claim()
    assert b"a1b2c3d4e5f6" not in encode_heartbeat(claim)
    assert (claim.job, claim.attempt, claim.rank, claim.pid) == (42, 1, 3, os.getpid())


def test_a_heartbeat_of_others_may_say_little() -> None:
    """Job, source and time are enough, fields that are not known are ignored, anything else is refused."""
    beat = decode_heartbeat(b'{"job": 1, "source": "julia", "at": 5, "colour": "red"}')
    assert (beat.job, beat.attempt, beat.quiet_s) == (1, 0, 0)
    said = {"job": 1, "source": "a", "at": 5}
    unheard_of = [said | {"job": 0}, said | {"at": -1}, said | {"quiet_s": 1e300}, said | {"host": "h" * 1000}]
    for wrong in (b"[]", b'{"job": 1}', b"\xff", *map(msgspec.json.encode, unheard_of)):
        with pytest.raises(InvalidMessage, match="not a heartbeat"):
            decode_heartbeat(wrong)


def test_metrics_of_the_machine_are_no_progress() -> None:
    """All reports count as activity, except points that have `system/` values alone."""
    machine = Point(ts=1, values={"system/cpu": 1.0, "system/gpu": 2.0})
    for body in (logs("a"), metrics(loss=1.0), checkpoint(), completion(), Metrics(ts=1, name="n")):
        assert shows_progress(body)
    assert shows_progress(Metrics(points=[machine, Point(ts=1, values={"system/cpu": 1.0, "loss": 0.0})]))
    assert shows_progress(Metrics(points=[machine], progress=Progress(current_epoch=1)))
    assert not shows_progress(Metrics(points=[machine, machine]))


def test_the_longest_pause_is_a_number_of_seconds() -> None:
    """An invalid longest pause is rejected with the name of the argument or of the variable."""
    wrong: list[Any] = [0.5, -1, True, float("nan"), "soon"]
    for value in wrong:
        with pytest.raises(ValueError, match=r"stall_after_s=.* is not a number of seconds from 1 to 2592000"):
            Run(42, stall_after_s=value)
    with pytest.raises(ValueError, match=r"TRAINWIRE_STALL_AFTER_S=0\.0 is not a number of seconds"):
        TrainerSettings.from_env({"TRAINWIRE_STALL_AFTER_S": "0"})
    assert (
        TrainerSettings.from_env({"TRAINWIRE_STALL_AFTER_S": "90"}).with_stall_after(30).vitals.stall_after_s == 30
    )


def test_each_listener_of_a_stop_request_is_called_once() -> None:
    """A listener that is added while the request arrives is called once, as are earlier and later ones."""
    stop, calls = StopSignal(), list[str]()
    stop.listen(lambda: stop.listen(lambda: calls.append("during")))
    stop.listen(lambda: calls.append("before"))
    stop.note(1, StopRequest(by="ada"))
    stop.note(1, StopRequest(by="ada"))
    stop.listen(lambda: calls.append("after"))
    assert sorted(calls) == ["after", "before", "during"]
