"""The drain stores every message once and in order, however often it arrives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs, metrics, one, rows
from tests.processes import wait_until
from trainwire.schemas.keys import HALTED_KEY, Kind, acks_key, ordered_key, stream_key
from trainwire.schemas.tables import (
    dead_letters,
    ingest_cursors,
    source_positions,
    training_attempts,
    training_checkpoints,
    training_jobs,
    training_logs,
    training_metrics,
)
from trainwire.schemas.wire.messages import Metrics, Point, Progress
from trainwire.workers.drain import store
from trainwire.workers.drain.decoding import RawEntry
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream, next_page
from trainwire.workers.errors import MostlyInvalid
from trainwire.workers.resources import Resources

STREAM = stream_key("logs", 1)


def execute(resources: Resources, statement: str) -> None:
    """Execute a statement in a transaction of its own."""
    with resources.engine.begin() as connection:
        connection.execute(text(statement))


def test_messages_become_rows_in_order(resources: Resources, sender: Sender) -> None:
    """Lines of several messages are numbered 1, 2, 3 per job, in the order in which they were made."""
    sender.send(logs("a", "b"))
    sender.send(logs("c"))
    sender.send(logs("x"), job=5)
    drained = drain(resources)
    assert (drained.entries, drained.stored, drained.duplicates) == (3, 3, 0)
    assert rows(resources.engine, training_logs, "job_id", "seq", "content") == [
        (1, 1, "a"),
        (1, 2, "b"),
        (1, 3, "c"),
        (5, 1, "x"),
    ]


def test_the_first_message_creates_the_job(resources: Resources, sender: Sender) -> None:
    """The first message of any kind creates its job with the status running."""
    sender.send(checkpoint("s3://b/one.pt"), job=9)
    drain(resources, "checkpoints", job=9)
    job = one(resources.engine, training_jobs, id=9)
    assert (job["status"], job["attempt"], job["best_checkpoint_path"]) == ("running", 1, "s3://b/one.pt")
    assert rows(resources.engine, training_checkpoints, "uri") == ["s3://b/one.pt"]


def test_a_resend_is_stored_once(resources: Resources, sender: Sender) -> None:
    """The same message published three times, in one batch and in two, is one row."""
    for _ in range(2):
        sender.send(logs("once"), seq=1)
    drain(resources)
    sender.send(logs("once"), seq=1)
    assert drain(resources).duplicates == 1
    assert rows(resources.engine, training_logs, "content") == ["once"]
    assert one(resources.engine, ingest_cursors, stream=STREAM)["duplicates"] == 2


def test_a_hole_is_recorded_and_closed_when_the_missing_one_comes(resources: Resources, sender: Sender) -> None:
    """Messages with a gap are stored in order; the trainer reads the gap from the acks until it is filled."""
    for seq in (4, 2, 5, 1):
        sender.send(logs(f"line {seq}"), seq=seq)
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["line 1", "line 2", "line 4", "line 5"]
    assert one(resources.engine, source_positions, job_id=1)["missing"] == [[3, 3]]
    acks = sender.client.hgetall(acks_key(1))
    assert acks == {b"0-test:logs": b"2", b"0-test:logs:missing": b"3-3"}

    sender.send(logs("line 3"), seq=3)
    drain(resources)
    assert one(resources.engine, source_positions, job_id=1)["missing"] == []
    assert sender.client.hgetall(acks_key(1)) == {b"0-test:logs": b"5"}
    assert sorted(rows(resources.engine, training_logs, "content")) == [f"line {seq}" for seq in range(1, 6)]


def test_committed_messages_are_acked_and_trimmed(resources: Resources, sender: Sender) -> None:
    """After a drain the stream is empty, another drain can be ordered, and the messages are acknowledged."""
    for number in range(50):
        sender.send(logs(f"{number}"))
    sender.client.set(ordered_key(STREAM), 1)
    drain(resources)
    assert sender.client.xlen(STREAM) == 0
    assert not sender.client.exists(ordered_key(STREAM))
    assert sender.client.hget(acks_key(1), "0-test:logs") == b"50"


def test_ranges_that_no_longer_hold_leave_the_acks(resources: Resources, sender: Sender) -> None:
    """Ranges that Redis kept, or a lost TTL, are corrected by a resend, a completion, and once an hour."""
    missing = "0-test:logs:missing"
    hour_ago = "UPDATE source_positions SET updated_at = now() - interval '1 hour'"

    def send_an_hour_later() -> None:
        execute(resources, hour_ago)
        sender.send(logs("b"))

    sender.send(logs("a"))
    drain(resources)
    steps: list[tuple[Kind, Callable[[], object]]] = [
        ("logs", lambda: sender.send(logs("a"), seq=1)),
        ("logs", send_an_hour_later),
        ("completions", lambda: sender.send(completion(produced={"logs": 2}))),
    ]
    for kind, correct in steps:
        sender.client.hset(acks_key(1), missing, "7-9")
        sender.client.persist(acks_key(1))
        correct()
        drain(resources, kind)
        assert not sender.client.hexists(acks_key(1), missing)
        assert sender.client.ttl(acks_key(1)) > 0


def test_any_name_of_a_source_advances(resources: Resources, sender: Sender) -> None:
    """Names with characters that arrays of Postgres quote are the same source in each message."""
    names = ['"', "\\", '\\"', "a,b", "{}", "NULL", " ", "日本\n"]
    for text_ in ("first", "next", "last"):
        for name in names:
            sender.send(logs(text_), source=name)
        assert drain(resources).stored == len(names)
    found = rows(resources.engine, source_positions, "source", "last_seq", order=["job_id", "source"])
    assert sorted(found) == sorted((name, 3) for name in names)
    assert one(resources.engine, training_jobs, id=1)["last_log_seq"] == 3 * len(names)


def test_a_message_that_only_counts_changes_nothing_else(resources: Resources, sender: Sender) -> None:
    """Log lines after metrics keep name, parameters and progress of the job, and renew its last message."""
    point = Point(ts=NOW_NS, values={"loss": 0.5})
    progress = Progress(current_epoch=3, progress_percent=12.5)
    sender.send(Metrics(points=[point], name="digits", params={"lr": 0.1}, progress=progress))
    drain(resources, "metrics")
    execute(resources, "UPDATE training_jobs SET settled = 'loki', last_seen_at = now() - interval '1 day'")
    before = dict(one(resources.engine, training_jobs, id=1))
    sender.send(logs("a", "b"))
    drain(resources)
    after = dict(one(resources.engine, training_jobs, id=1))
    assert after["last_seen_at"] > before["last_seen_at"]
    changed = {"last_log_seq": 2, "settled": "", "last_seen_at": after["last_seen_at"]}
    assert after == before | changed


def test_entries_read_twice_are_stored_once(resources: Resources, sender: Sender) -> None:
    """A worker that dies between commit and trim leaves entries that the next drain skips and acks."""
    for _ in range(2):
        sender.send(logs("a"), seq=1, entry_id="100-1")
        sender.send_raw("logs", 1, {"v": "nonsense"}, entry_id="100-2")
        drained = drain(resources)
        acked = sender.client.hget(acks_key(1), "0-test:logs")
        sender.client.flushdb()
    assert (drained.stored, drained.duplicates, acked) == (0, 1, b"1")
    assert rows(resources.engine, training_logs, "content") == ["a"]
    assert len(rows(resources.engine, dead_letters, "id", order=["id"])) == 1


def test_updates_stay_in_their_pages(resources: Resources, sender: Sender) -> None:
    """Further messages of 200 jobs update rows of jobs and positions without new entries in the indexes."""

    tables = ("training_jobs", "source_positions")

    def updates() -> dict[str, tuple[int, int]]:
        resources.engine.dispose()  # a connection that ends has reported its counts
        with resources.engine.connect() as connection:
            found = connection.execute(text("SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"))
            return {name: (total, in_place) for name, total, in_place in found if name in tables}

    def final_updates() -> dict[str, tuple[int, int]]:
        """Return the counts once all processes of Postgres that end have reported theirs."""
        seen = [updates()]

        def are_final() -> bool:
            time.sleep(0.5)
            seen.append(updates())
            return seen[-1] == seen[-2]

        wait_until(are_final, "counts that do not change")
        return seen[-1]

    def send_round() -> None:
        for job in range(1, 801, 4):
            sender.send(logs("a"), job=job)
        drain(resources)

    send_round()
    before = final_updates()
    for _ in range(5):
        send_round()
    after = final_updates()
    for table in tables:
        total, in_place = (new - old for new, old in zip(after[table], before[table], strict=True))
        assert total == 1000
        assert in_place > 0.9 * total


def test_a_stream_born_anew_is_read_from_its_start(resources: Resources, sender: Sender) -> None:
    """After FLUSHALL and a clock set back, entries with ids below the cursor are stored."""
    sender.send(logs("before"), seq=1)
    drain(resources)
    sender.client.flushdb()
    sender.send(logs("clock set back"), seq=2, entry_id="5-0")
    sender.send(logs("clock mended"), seq=3)
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["before", "clock set back", "clock mended"]
    assert sender.client.xlen(STREAM) == 0


def test_two_drains_of_one_stream(resources: Resources, sender: Sender) -> None:
    """While one drain has the lease, another returns at once, and none is ordered until the first has finished."""
    sender.send(logs("a"))
    sender.client.set(ordered_key(STREAM), 1)
    with resources.engine.begin() as holder:
        assert store.take_lease(holder, STREAM)
    with resources.engine.begin() as holder:
        assert store.take_lease(holder, STREAM)
        drained = drain(resources)
        assert drained.leased_elsewhere
        assert sender.client.exists(ordered_key(STREAM))
        assert rows(resources.engine, training_logs, "content") == []
    assert drain(resources).stored == 1


def test_news_during_a_drain_is_read_by_it(resources: Resources, sender: Sender) -> None:
    """Entries appended during a drain, whose order finds the lease taken, are read by that drain."""
    sender.send(logs("first"))
    stream = IngestStream(sender.client, "logs", 1)
    drain_once = Drain(resources.engine, stream, resources.settings)
    has_sent: list[bool] = []
    settle = stream.settle

    def settle_and_publish(*arguments: Any, **options: Any) -> None:
        settle(*arguments, **options)
        if not has_sent:
            has_sent.append(True)
            sender.send(logs("second"))
            sender.client.set(ordered_key(STREAM), 1)

    stream.settle = settle_and_publish  # type: ignore[method-assign]
    drain_once.run()
    assert rows(resources.engine, training_logs, "content") == ["first", "second"]


def test_a_batch_is_bounded_in_bytes(resources: Resources, sender: Sender) -> None:
    """A backlog larger than one transaction is drained in several, compressed entries included."""
    small = resources.settings.model_copy(update={"drain_batch_bytes": 4096})
    for number in range(40):
        sender.send(logs(*([f"{number}: " + "x" * 500] * 8)))
    stream = IngestStream(sender.client, "logs", 1)
    total = Drain(resources.engine, stream, small).run()
    assert total.stored == 40
    assert len(rows(resources.engine, training_logs, "seq")) == 320
    with resources.engine.connect() as connection:
        transactions = connection.execute(
            text("SELECT count(DISTINCT xmin::text) FROM training_logs")
        ).scalar_one()
    assert transactions > 10


def test_a_time_slice_ends_with_more_to_do(resources: Resources, sender: Sender) -> None:
    """A drain whose time slice has ended reports that there is more, and has stored the entries that it read."""
    small = resources.settings.model_copy(update={"drain_batch_bytes": 1024, "drain_slice_s": 5.0})
    for number in range(30):
        sender.send(logs(f"{number}" + "y" * 900))
    ticks = iter(range(0, 10_000, 3))
    total = Drain(resources.engine, IngestStream(sender.client, "logs", 1), small, clock=lambda: next(ticks)).run()
    assert total.more
    assert 0 < total.stored < 30
    assert sender.client.xlen(STREAM) == 30 - total.stored


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_drain_yields_to_waiting_orders(resources: Resources, sender: Sender, is_busy: bool) -> None:
    """After its share of time a drain ends if other orders wait, so that no stream waits for a full time slice."""
    small = resources.settings.model_copy(update={"drain_batch_bytes": 1024, "drain_slice_s": 30.0})
    for number in range(30):
        sender.send(logs(f"{number}" + "y" * 900))
    ticks = (number / 100 for number in range(1000))  # 0.01 s each
    stream = IngestStream(sender.client, "logs", 1)
    total = Drain(
        resources.engine, stream, small, clock=lambda: next(ticks), has_waiting_orders=lambda: is_busy
    ).run()
    assert total.more == is_busy
    assert (0 < total.stored < 30) == is_busy
    assert sender.client.xlen(STREAM) == 30 - total.stored


def test_one_entry_that_postgres_refuses_is_found_and_dead_lettered(resources: Resources, sender: Sender) -> None:
    """Of 200 messages the two that Postgres refuses are dead letters, and 198 are rows in order."""
    with resources.engine.begin() as connection:
        connection.execute(text("ALTER TABLE training_logs ADD CONSTRAINT no_poison CHECK (content <> 'poison')"))
    try:
        for number in range(1, 201):
            sender.send(logs("poison" if number in {7, 150} else f"{number}"))
        drained = drain(resources)
    finally:
        with resources.engine.begin() as connection:
            connection.execute(text("ALTER TABLE training_logs DROP CONSTRAINT no_poison"))
    assert (drained.stored, drained.dead_lettered) == (198, 2)
    found = rows(resources.engine, training_logs, "seq", "content")
    assert [content for _, content in found] == [f"{n}" for n in range(1, 201) if n not in {7, 150}]
    assert [seq for seq, _ in found] == list(range(1, 199))
    assert rows(resources.engine, dead_letters, "seq", "reason", order=["seq"]) == [
        (7, "refused"),
        (150, "refused"),
    ]
    assert one(resources.engine, source_positions, job_id=1)["dead_lettered"] == 2


def test_a_job_is_as_its_last_message_where_postgres_refuses_one(resources: Resources, sender: Sender) -> None:
    """A job that a part of a split batch changes, and the next part changes back, is saved as it was."""

    def send(name: str, loss: float) -> None:
        points = [Point(ts=NOW_NS, values={"loss": loss})]
        sender.send(Metrics(points=points, name=name, progress=Progress(current_epoch=3)))

    send("first", 1)
    drain(resources, "metrics")
    execute(resources, "ALTER TABLE training_metrics ADD CONSTRAINT no_poison CHECK (loss <> 13)")
    try:
        for name, loss in (("second", 2), ("refused", 13), ("first", 3)):
            send(name, loss)
        assert drain(resources, "metrics").dead_lettered == 1
    finally:
        execute(resources, "ALTER TABLE training_metrics DROP CONSTRAINT no_poison")
    job, attempt = one(resources.engine, training_jobs, id=1), one(resources.engine, training_attempts, job_id=1)
    assert (job["name"], attempt["name"], job["last_metric_seq"]) == ("first", "first", 3)


def test_a_stream_of_garbage_is_not_emptied(resources: Resources, sender: Sender) -> None:
    """If nearly all entries are invalid, the drain stops with the reason and leaves them in the stream."""
    for number in range(150):
        sender.send_raw(
            "logs", 1, {"v": 1, "job": 1, "attempt": 1, "source": "s", "seq": number + 1, "enc": "x", "body": "y"}
        )
    with pytest.raises(
        MostlyInvalid, match=r"150 of 150 new entries of ingest:\{1\}:logs .*DRAIN_MAX_INVALID_RATIO"
    ):
        drain(resources)
    assert sender.client.xlen(STREAM) == 150
    assert rows(resources.engine, dead_letters, "id", order=["id"]) == []
    assert b"150 of 150" in (sender.client.hget(HALTED_KEY, STREAM) or b"")

    willing = resources.settings.model_copy(update={"drain_max_invalid_ratio": 1.0})
    drained = Drain(resources.engine, IngestStream(sender.client, "logs", 1), willing).run()
    assert drained.dead_lettered == 150
    assert not sender.client.hexists(HALTED_KEY, STREAM)


def test_drains_of_different_kinds_do_not_deadlock(resources: Resources, sender: Sender) -> None:
    """Drains of four kinds that update the same forty jobs in opposite orders all complete."""
    jobs = [4 * number + 1 for number in range(40)]
    for turn in range(5):
        for job in jobs:
            sender.send(logs(f"{turn}"), job=job)
            sender.send(metrics(loss=0.1), job=jobs[-1] - job + 1)
            sender.send(checkpoint(), job=job)
    for job in reversed(jobs):
        sender.send(completion(), job=job)
    failures: list[BaseException] = []

    def work(kind: str) -> None:
        try:
            drain(resources, kind)  # type: ignore[arg-type]
        except BaseException as exc:  # noqa: BLE001 - shown below
            failures.append(exc)

    threads = [
        threading.Thread(target=work, args=(kind,)) for kind in ("logs", "metrics", "checkpoints", "completions")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(rows(resources.engine, training_logs, "seq")) == 200
    assert len(rows(resources.engine, training_metrics, "seq")) == 200
    assert len(rows(resources.engine, training_checkpoints, "seq")) == 200


def test_a_transaction_that_postgres_takes_back_is_done_again(resources: Resources, sender: Sender) -> None:
    """A drain whose transaction fails by a deadlock repeats it and stores everything."""
    for job in (1, 5):
        sender.send(logs("before"), job=job)
    drain(resources)
    for job in (1, 5):
        sender.send(logs("during"), job=job)
    ready = threading.Event()

    def lock_the_wrong_way_round() -> None:
        with resources.engine.connect() as connection:
            connection.execute(text("SET deadlock_timeout = '5s'"))
            connection.commit()
            connection.execute(text("SELECT 1 FROM training_jobs WHERE id = 5 FOR UPDATE"))
            ready.set()
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            for _ in range(500):
                with resources.engine.connect() as other:
                    if other.execute(waiting).scalar_one():
                        break
            connection.execute(text("SELECT 1 FROM training_jobs WHERE id = 1 FOR UPDATE"))
            connection.rollback()

    thread = threading.Thread(target=lock_the_wrong_way_round)
    thread.start()
    assert ready.wait(60)
    assert drain(resources).stored == 2
    thread.join(60)
    assert rows(resources.engine, training_logs, "content") == ["before", "during", "before", "during"]


def test_points_without_end(resources: Resources, sender: Sender) -> None:
    """A message with 100,000 points is stored as 100,000 rows."""
    points = [Point(ts=NOW_NS + n, step=n, values={"loss": 1 / (n + 1)}) for n in range(100_000)]
    sender.send(Metrics(points=points))
    drain(resources, "metrics")
    steps = rows(resources.engine, training_metrics, "step")
    assert steps == list(range(100_000))


def test_a_reply_is_bounded_where_large_entries_follow_small_ones(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 600 small entries, and behind others ahead, no reply has more than 128 of the large that follow."""
    for _ in range(600):
        sender.send(logs("small"))
    for number in range(400):
        sender.send_raw("logs", 5, {"job": 5, "source": "s", "large": "x" * 50_000, "seq": number + 1})
    replies: list[int] = []
    read_page = IngestStream.page

    def page(stream: IngestStream, start: str, count: int) -> list[RawEntry]:
        found = read_page(stream, start, count)
        replies.append(sum(entry.held_bytes for entry in found))
        return found

    monkeypatch.setattr(IngestStream, "page", page)
    drained = drain(resources)
    assert (drained.stored, drained.dead_lettered) == (600, 400)
    assert max(replies) < 130 * 50_400
    assert sorted(replies)[-3] < 5 * resources.settings.drain_batch_bytes


def test_a_page_is_as_long_as_the_largest_entry_allows() -> None:
    """A page has 32 entries after the first, then 128; after a large one it has four times the budget at most."""
    assert [next_page(count, 100, 2**20) for count in (1, 4, 64, 128)] == [32, 128, 128, 128]
    assert next_page(128, 500_000, 2**20) == 8
    assert next_page(128, 2**30, 2**20) == 1
