"""Traces of real processes, as they arrive at a collector of OpenTelemetry (docs/tracing.md)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.factories import Sender, logs, rows
from tests.integration.gateway.feed_clients import GatewayProcess
from tests.otlp_receiver import OtlpReceiver, Span, collecting
from tests.processes import ROOT, Process, server_variables, wait_until, workers_running
from tests.twins.loki import Fault, LokiTwin
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.keys import events_channel
from trainwire.schemas.tables import training_logs
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Message
from trainwire.workers.resources import Resources

JOB: Final = 42
CAUSE: Final = ("5" * 32, "6" * 16)
"""Trace and span of whoever started the training."""
TRAINER: Final = """
import json
from trainwire import Run
run = Run(42, "digits")
run.log("a line")
run.metric(step=1, loss=0.5)
receipt = run.finish(timeout_s=180)
print(json.dumps({"complete": receipt.complete, "traceparent": run.origin.traceparent}))
"""
RECYCLING: Final = """
import sys
from trainwire.workers.app import app
from trainwire.workers.__main__ import main
app.conf.worker_max_tasks_per_child = 2
sys.exit(main(["worker", "--name", "recycling", "--concurrency", "1"]))
"""


@pytest.fixture
def collector() -> Iterator[OtlpReceiver]:
    """A collector that accepts all spans."""
    with collecting() as receiver:
        yield receiver


def traced(collector: OtlpReceiver) -> dict[str, Any]:
    """Return the variables that trace a process, and export all its spans, ten times a second."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "TRACE_SLOW_S": "0",
    }


def train(script: str = TRAINER, **env: str) -> tuple[dict[str, Any], str]:
    """Run a training to its end; return what it printed, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"TRAINWIRE_SETTLE_S": "60"} | env,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


def send_traced(sender: Sender, seq: int, traceparent: str) -> None:
    """Append a line of a traced run to its stream."""
    message = Message("logs", 1, 0, "0-traced", seq, logs(f"line {seq}", ts=time.time_ns()))
    sender.send_raw("logs", 1, encode_entry(message, traceparent))


@contextmanager
def recycling_worker(resources: Resources, folder: Path, **env: str) -> Iterator[Process]:
    """Run a worker with one pool process, which is replaced after two orders."""
    worker = Process(resources.settings, folder / "recycling.log", LOKI_ENABLED="false", **env)
    worker.command = [sys.executable, "-c", RECYCLING]
    worker.start()
    try:
        wait_until(worker.is_ready, "the worker's start", 90)
        yield worker
    finally:
        worker.stop()


def test_one_trace_from_the_run_to_the_event(
    resources: Resources, collector: OtlpReceiver, tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """Spans of trainer, gateway, drain, commit, delivery and notifier are one trace, that of the run's cause."""
    env = traced(collector)
    with resources.engine.begin() as connection:
        token = create_token(connection, "test", "trainer", None)[1]
    with (
        LokiTwin() as loki,
        workers_running(resources.settings, tmp_path, LOKI_URL=loki.url, **env),
        GatewayProcess(tmp_path, database_url, redis_url, GATEWAY_AUTH="on", **env) as gateway,
        resources.redis.pubsub() as events,  # type: ignore[no-untyped-call]
    ):
        events.subscribe(events_channel(JOB))
        cause = f"00-{CAUSE[0]}-{CAUSE[1]}-01"
        receipt, _ = train(TRAINWIRE_URL=gateway.url, TRAINWIRE_TOKEN=token, TRACEPARENT=cause, **env)
        assert receipt["complete"]
        expected = {"run", "POST /jobs/{job_id}/messages", "drain", "commit", "deliver", "publish"}
        wait_until(lambda: expected <= {span.name for span in in_trace(collector)}, "a span of each kind", 120)
        published = [message["data"] for message in iter(lambda: events.get_message(timeout=1), None)]
    (run,) = collector.named("run")
    assert run.parent_id == CAUSE[1]
    assert receipt["traceparent"][3:52] == run.identity
    drains = {span.span_id for span in in_trace(collector) if span.name == "drain"}
    for span in in_trace(collector):
        assert span.parent_id in (drains if span.name == "commit" else {run.span_id, CAUSE[1]}), span
        if span.name not in {"commit", "publish"}:
            assert span.attributes["trainwire.job_id"] in (JOB, str(JOB))
    services = {span.service for span in in_trace(collector)}
    assert services == {"trainwire-trainer", "trainwire-gateway", "trainwire-worker"}
    named = [json.loads(data).get("traceparent") for data in published if isinstance(data, bytes)]
    assert named
    assert set(named) == {receipt["traceparent"]}


def in_trace(collector: OtlpReceiver) -> list[Span]:
    """Return the spans of the trace that the training was started in."""
    return [span for span in list(collector.spans) if span.trace_id == CAUSE[0]]


def test_only_slow_spans_by_default(
    resources: Resources, sender: Sender, collector: OtlpReceiver, tmp_path: Path
) -> None:
    """Of a job whose Loki takes two seconds to answer, the delivery is exported, and no span of less than one."""
    env = traced(collector)
    del env["TRACE_SLOW_S"]
    with LokiTwin() as loki, workers_running(resources.settings, tmp_path, LOKI_URL=loki.url, **env):
        loki.faults.append(Fault(kind="slow", times=1, delay_s=2))
        send_traced(sender, 1, f"00-{CAUSE[0]}-{CAUSE[1]}-01")
        wait_until(lambda: collector.named("deliver"), "the span of the slow delivery", 120)
    assert collector.named("deliver")[0].parent_id == CAUSE[1]
    assert all(span.seconds >= 1 for span in collector.spans), collector.spans


def test_pool_children_are_traced_after_they_are_replaced(
    resources: Resources, sender: Sender, collector: OtlpReceiver, tmp_path: Path
) -> None:
    """Each pool process exports its spans when it is recycled, and so does the one that replaces a killed one."""
    # Without an export by schedule, a span arrives only if the end of its process exports it.
    env = traced(collector) | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with recycling_worker(resources, tmp_path, **env) as worker:
        for seq in range(1, 13):
            send_traced(sender, seq, f"00-{CAUSE[0]}-{CAUSE[1]}-01")
            wait_until(lambda seq=seq: len(rows(resources.engine, training_logs, "seq")) == seq, "the row", 120)  # type: ignore[misc]
        wait_until(lambda: len({span.pid for span in collector.named("drain")}) >= 3, "three generations", 120)
        pids = {span.pid for span in collector.named("drain")}
        assert worker.process.pid not in pids
        for child in psutil.Process(worker.process.pid).children():
            os.kill(child.pid, signal.SIGKILL)
            killed = child.pid
        send_traced(sender, 13, f"00-{CAUSE[0]}-{CAUSE[1]}-01")
        wait_until(lambda: len(rows(resources.engine, training_logs, "seq")) == 13, "the last row", 120)
        worker.process.terminate()
        worker.process.wait(60)
    last = {span.pid for span in collector.named("drain")} - pids
    assert last - {killed}, "the worker's end exports the spans of its last pool process"
    assert {span.trace_id for span in collector.named("drain")} == {CAUSE[0]}


def test_no_collector_delays_rows(
    resources: Resources, collector: OtlpReceiver, tmp_path: Path, redis_url: str
) -> None:
    """With a collector that hangs, refuses or is gone, runs are stored and end in time, with one warning."""
    env = traced(collector)
    with workers_running(resources.settings, tmp_path, **env) as (worker,):
        for trouble in ("hangs", "refuses", "is gone"):
            collector.hangs, collector.status = trouble == "hangs", 400
            if trouble == "is gone":
                collector.stop()
            receipt, stderr = train(REDIS_URL=redis_url, **env)
            assert receipt["complete"], trouble
            assert stderr.count("the span of the run was not exported") == 1, stderr
            assert "Traceback" not in stderr
            assert "opentelemetry" not in stderr
        worker.process.terminate()
        worker.process.wait(60)
    assert "drain.crashed" not in worker.output


def test_log_events_have_the_ids_of_their_span(
    resources: Resources, sender: Sender, collector: OtlpReceiver, tmp_path: Path
) -> None:
    """What a worker logs about a failed delivery names the trace, the span and the job."""
    with (
        LokiTwin() as loki,
        workers_running(resources.settings, tmp_path, LOKI_URL=loki.url, **traced(collector)) as (worker,),
    ):
        loki.fail_with(503)
        send_traced(sender, 1, f"00-{CAUSE[0]}-{CAUSE[1]}-01")
        wait_until(lambda: "delivery.unavailable" in worker.output, "the failed delivery", 120)
        wait_until(lambda: [span for span in collector.named("deliver") if span.is_error], "its span", 120)
    (line,) = [line for line in worker.output.splitlines() if "delivery.unavailable" in line][:1]
    event = json.loads(line)
    assert (event["trace_id"], event["job_id"]) == (CAUSE[0], 1)
    assert event["span_id"] in {span.span_id for span in collector.named("deliver")}


def test_a_launched_training_is_part_of_its_launcher(
    resources: Resources, collector: OtlpReceiver, tmp_path: Path, redis_url: str
) -> None:
    """The run of a script is a child of the span of `trainwire run`; all its processes are parts of one trace."""
    script = tmp_path / "train.py"
    script.write_text(
        "import subprocess, sys\n"
        "from trainwire import Run\n"
        "with Run() as run:\n"
        "    run.log('parent')\n"
        "    child = 'from trainwire import Run\\nwith Run() as run: run.log(\"child\")'\n"
        "    subprocess.run([sys.executable, '-c', child], check=True)\n"
    )
    env = os.environ | {"REDIS_URL": redis_url, "TRAINWIRE_QUIET": "on"} | traced(collector)
    with workers_running(resources.settings, tmp_path, **traced(collector)):
        command = [sys.executable, "-m", "trainwire", "run", "--job-id", "7", "--", sys.executable, str(script)]
        subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=120, capture_output=True)
        stored = {"parent", "child"}
        wait_until(lambda: stored <= set(rows(resources.engine, training_logs, "content")), "both lines", 120)
    launcher, inner = sorted(collector.named("run"), key=lambda span: span.parent_id)
    assert not launcher.parent_id
    assert (inner.trace_id, inner.parent_id) == (launcher.trace_id, launcher.span_id)
    assert {span.trace_id for span in collector.named("drain")} == {launcher.trace_id}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "1"}, "OTEL_"),
        ({"TRACE_SLOW_S": "-1"}, "TRACE_SLOW_S"),
    ],
    ids=["address", "protocol", "queue", "threshold"],
)
def test_wrong_variables_are_named_at_the_start(resources: Resources, env: dict[str, str], expected: str) -> None:
    """A process with an unusable variable ends with one sentence that names it."""
    done = sweep(resources, "-m", "trainwire.workers", "sweep", **env)
    assert done.returncode == 78, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_packages_are_named(resources: Resources) -> None:
    """Without the packages a server ends with the command that installs them; a training warns once."""
    without = "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
    script = f"{without}from trainwire.workers.__main__ import main\nsys.exit(main(['sweep']))"
    done = sweep(resources, "-c", script)
    assert done.returncode == 78
    assert "pip install 'trainwire[otel]'" in done.stderr
    trained = sweep(
        resources, "-c", f"{without}from trainwire import Run\nfor job in (1, 2): Run(job).finish(timeout_s=0.1)"
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.count("pip install 'trainwire[otel]'") == 1


def sweep(resources: Resources, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the addresses of the stores and of a collector that does not exist."""
    settings = resources.settings
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ
        | {
            **server_variables(settings),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
