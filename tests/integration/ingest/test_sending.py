"""The messages in the streams of a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.factories import NOW_NS
from trainwire import Run, TrainerSettings
from trainwire.ingest.sending.transports.redis_connection import RedisConnection
from trainwire.ingest.sending.unacked import EncodedMessage
from trainwire.schemas.keys import HOLD_KEY, KINDS, SHARDS_KEY, alive_key, stream_key
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Logs, Message, Metrics

Until = Callable[..., None]
SHARD = 2  # of job 42, with the default number of shards


def test_a_run_says_everything_in_order(valkey: Any, settings: TrainerSettings) -> None:
    """Lines, points, checkpoint and completion arrive in order, numbered from 1."""
    with Run(42, "digits", total_epochs=2, params={"lr": 0.1}, settings=settings) as run:
        run.log("one\ntwo")
        run.log("oops", log_type="stderr", level="ERROR")
        run.log("three")
        run.metric(epoch=1, step=5, loss=0.0, values={"val/acc": float("nan")})
        run.checkpoint("s3://bucket/best.pt", kind="best", epoch=1)
    bodies: list[Any] = [body for _, body in valkey.entries("logs")]
    assert [body.lines for body in bodies] == [["one", "two"], ["oops"], ["three"]]
    assert [body.log_type for body in bodies] == ["stdout", "stderr", "stdout"]
    assert bodies[1].levels == ["ERROR"]
    assert valkey.seqs("logs") == [1, 2, 3]
    metrics: list[Any] = [body for _, body in valkey.entries("metrics")]
    assert (metrics[0].name, metrics[0].params) == ("digits", {"lr": 0.1})
    assert metrics[0].progress.total_epochs == 2
    points = [point for body in metrics for point in body.points]
    assert points[0].values["loss"] == 0.0
    assert points[0].values["val/acc"] != points[0].values["val/acc"]  # NaN came through
    assert metrics[-1].progress.current_epoch == 1
    (completion,) = valkey.completions()
    assert completion.status == "completed"
    assert completion.produced == {
        "logs": 3,
        "metrics": len(metrics),
        "checkpoints": 1,
        "completions": 1,
    }
    assert completion.best_checkpoint_path == "s3://bucket/best.pt"


def test_the_job_exists_before_anything_is_logged(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """The first message is a running progress with the start time."""
    run = Run(42, settings=settings)
    until(lambda: valkey.entries("metrics"))
    first = valkey.entries("metrics")[0][1]
    assert isinstance(first, Metrics)
    assert first.progress is not None
    assert first.progress.status == "running"
    assert first.ts is not None
    run.finish()


def test_a_trainer_writes_only_what_it_has_a_right_to(
    valkey: Any, settings: TrainerSettings, until: Until
) -> None:
    """A run makes streams, its heartbeat and its claim; no key of Celery's broker is among them."""
    run = Run(42, settings=settings)
    run.log("said")
    run.metric(loss=1)
    run.checkpoint("s3://bucket/last.pt")
    until(lambda: valkey.entries("logs") and list(valkey.client.scan_iter("ingest:claims:42:*")))
    made = {key.decode() for key in valkey.client.scan_iter()}
    run.finish()
    made = {key for key in made if not key.startswith("ingest:claims:42:")}
    assert made <= {alive_key(2), *(stream_key(kind, 2) for kind in KINDS)}


def test_the_published_number_of_shards_is_used(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """A run asks for the number of shards when it connects and stays with it."""
    valkey.client.set(SHARDS_KEY, 7)
    run = Run(44, settings=settings)
    until(lambda: valkey.client.exists(stream_key("metrics", 44 % 7)))
    valkey.client.set(SHARDS_KEY, 3)
    run.metric(loss=1)
    until(lambda: valkey.client.xlen(stream_key("metrics", 44 % 7)) >= 2)
    run.finish()


def test_hold_keeps_messages_until_it_is_gone(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """Nothing is sent while the workers ask trainers to hold back, and everything after."""
    valkey.client.set(HOLD_KEY, 1)
    run = Run(42, settings=settings)
    run.log("retry")
    until(lambda: valkey.client.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"] >= 3)
    assert not valkey.entries("logs")
    valkey.client.delete(HOLD_KEY)
    until(lambda: valkey.lines("stdout") == ["retry"])
    run.finish()


def test_a_small_message_takes_one_round_trip(valkey: Any) -> None:
    """A message is sent with the question whether Redis has room, if it had room before; a hold stops the next."""
    connection = RedisConnection(valkey.url, 42, "0-here")
    first = connection.exchange({"logs": [encoded(1)]}, [])
    assert (first.must_hold, first.seqs) == (False, {"logs": [1]})
    reads = valkey.client.info("stats")["total_reads_processed"]
    second = connection.exchange({"logs": [encoded(2)]}, ["logs"])
    assert valkey.client.info("stats")["total_reads_processed"] - reads == 2  # one is of this command
    assert second.seqs == {"logs": [2]}
    valkey.client.set(HOLD_KEY, 1)
    answers = [connection.exchange({"logs": [encoded(seq)]}, ["logs"]) for seq in (3, 4)]
    assert [(answer.must_hold, answer.seqs) for answer in answers] == [(True, {"logs": [3]}), (True, {})]
    assert valkey.seqs("logs") == [1, 2, 3]


def test_large_messages_wait_for_the_answer(valkey: Any) -> None:
    """Messages of many bytes are sent only after Redis has answered that it has room."""
    connection = RedisConnection(valkey.url, 42, "0-here")
    connection.exchange({"logs": [encoded(1)]}, [])
    valkey.client.set(HOLD_KEY, 1)
    answer = connection.exchange({"logs": [encoded(2, os.urandom(50_000).hex())]}, [])
    assert (answer.must_hold, answer.seqs) == (True, {})


def test_acknowledgements_alone_are_read_rarely(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """While there is nothing to send, acknowledgements are read ten times less often than with messages."""

    def asked() -> int:
        found = valkey.client.info("commandstats").get("cmdstat_hmget", {"calls": 0})
        return int(found["calls"])

    timing = replace(settings.timing, ack_interval_s=0.05)
    run = Run(42, settings=replace(settings, timing=timing))
    run.log("not acknowledged")
    until(lambda: asked() >= 3)
    began, before = time.monotonic(), asked()
    until(lambda: asked() >= before + 3)
    assert time.monotonic() - began >= 0.9  # two pauses of half a second
    run.finish()


def encoded(seq: int, text: str = "line") -> EncodedMessage:
    """Return a message of job 42 with one log line."""
    body = Logs(log_type="stdout", lines=[text], ts=[NOW_NS])
    return EncodedMessage(seq, encode_entry(Message("logs", 42, 1, "0-here", seq, body)))


def test_a_full_server_holds_back_and_recovers(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """At maxmemory nothing is lost and nothing is out of order; when there is room, it goes on."""
    run = Run(42, settings=settings)
    until(lambda: valkey.entries("metrics"))
    used = valkey.client.info("memory")["used_memory"]
    valkey.client.config_set("maxmemory-policy", "noeviction")
    valkey.client.config_set("maxmemory", used + 300_000)
    for _ in range(20):
        run.log("\n".join(os.urandom(50).hex() for _ in range(1000)))
    run.log("last")
    until(lambda: valkey.client.info("errorstats").get("errorstat_OOM"))
    valkey.client.config_set("maxmemory", 0)
    until(lambda: "last" in valkey.lines("stdout"))
    assert sorted(set(valkey.seqs("logs"))) == list(range(1, max(valkey.seqs("logs")) + 1))
    receipt = run.finish()
    assert receipt.unsent == {"logs": 0, "metrics": 0, "completions": 0}
    assert not receipt.dropped


def test_a_server_that_is_away_all_the_time_costs_nothing(settings: TrainerSettings) -> None:
    """With no server at all the run neither raises nor outlasts the deadline of finish."""
    run = Run(42, redis_url="redis://127.0.0.1:1/0", settings=settings)
    for step in range(1000):
        run.metric(step=step, loss=step)
    run.log("done")
    before = time.monotonic()
    receipt = run.finish(timeout_s=0.5)
    assert time.monotonic() - before < 60
    assert receipt.unsent["logs"] == receipt.produced["logs"] == 1
    assert not receipt.complete
    assert run.finish() is receipt


def test_a_server_that_comes_back_gets_everything(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """Values reported while the server is down are sent when it is up again."""
    run = Run(42, settings=settings)
    until(lambda: valkey.entries("metrics"))
    valkey.stop()
    run.log("while you were away")
    valkey.start()
    until(lambda: valkey.lines("stdout") == ["while you were away"])
    run.finish()


def test_lone_surrogates_are_made_visible(valkey: Any, settings: TrainerSettings) -> None:
    """Text that UTF-8 cannot encode is sent with U+FFFD in place of the invalid characters."""
    with Run(42, params={"path\udcff": "a\udcff"}, settings=settings) as run:
        run.log("bad \udcff text")
    assert valkey.lines("stdout") == ["bad \ufffd text"]
    first: Any = valkey.entries("metrics")[0][1]
    assert first.params == {"path\ufffd": "a\ufffd"}


def test_a_line_of_ten_megabytes_goes_alone(valkey: Any, settings: TrainerSettings) -> None:
    """A huge line is one message; its neighbours travel without it."""
    with Run(42, settings=settings) as run:
        run.log("before")
        run.log("x" * 10_000_000)
        run.log("after")
    bodies = [body for _, body in valkey.entries("logs") if isinstance(body, Logs)]
    assert [max(map(len, body.lines)) for body in bodies] == [6, 10_000_000, 5]


FORKING = """
import os, sys
from trainwire import Run
with Run(42) as run:
    run.log("parent")
    run.capture_output()
    print("unfinished", end="", flush=True)
    child = os.fork()
    if child == 0:
        run.log("child")
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.parametrize("flush_interval_s", ["0.001", "0.5"])
def test_a_forked_child_sends_its_own_and_nothing_of_its_parent(valkey: Any, flush_interval_s: str) -> None:
    """A child numbers its lines under a source of its own and leaves the completion to its parent.

    What no worker has acknowledged when the child ends, its parent sends again before its own completion.
    """
    environment = {**os.environ, "REDIS_URL": valkey.url, "TRAINWIRE_FLUSH_INTERVAL_S": flush_interval_s}
    environment["TRAINWIRE_SETTLE_S"] = "0.1"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", FORKING], cwd=root, env=environment, check=True, timeout=180)
    assert sorted(set(valkey.lines("stdout"))) == ["child", "parent", "unfinished"]
    ends = {said.status: said.produced for said in valkey.completions()}
    assert sorted(ends) == ["completed", "ended"]
    assert ends["ended"] == {"logs": 1, "completions": 1}
    sources = {fields[b"source"] for _, fields in valkey.client.xrange(stream_key("logs", SHARD))}
    assert len(sources) == 2


LATE_IMPORTS = """
import sys
from trainwire import Run
from trainwire.ingest.process.forks import importing

class WatchedFinder:
    def find_spec(self, name, path=None, target=None):
        if not importing().locked():
            late.append(name)

late = []
with Run(42) as run:
    sys.meta_path.insert(0, WatchedFinder())
    run.log("first")
    run.metric(loss=1.0)
print(late)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_sender_imports_nothing_while_a_fork_may_happen(valkey: Any, host: str) -> None:
    """All that a session with Redis needs is imported under the lock that forks wait for."""
    url = valkey.url.replace("127.0.0.1", host)
    environment = {**os.environ, "REDIS_URL": url, "TRAINWIRE_SETTLE_S": "0.1"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", LATE_IMPORTS]
    done = subprocess.run(
        command, cwd=root, env=environment, check=True, timeout=180, stdout=subprocess.PIPE, text=True
    )
    assert valkey.lines("stdout") == ["first"]
    assert done.stdout.strip() == "[]"


def test_a_sender_that_stumbles_says_why_and_goes_on(caplog: pytest.LogCaptureFixture, until: Until) -> None:
    """An address whose options cannot be used is one warning; nothing raises, hangs or is forgotten."""
    run = Run(job_id=42, redis_url="redis://127.0.0.1:1/0?socket_timeout=soon")
    run.log("kept")
    until(lambda: "cannot send" in caplog.text)
    receipt = run.finish(timeout_s=0.5)
    assert receipt.unsent == {"logs": 1, "metrics": 1, "completions": 1}
    assert "socket_timeout" in caplog.text
    assert caplog.text.count("cannot send") == 1
