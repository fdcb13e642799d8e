"""The span of a run, in processes of their own: OpenTelemetry is imported only where a collector is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.otlp_receiver import collecting
from tests.processes import ROOT
from trainwire.ingest.sending.recovery import resumed
from trainwire.ingest.spool.folder import SourceFolder, source_folders
from trainwire.ingest.spool.spool import Spool

RUN = """
import json, sys
{before}
from trainwire import Run
{inside}run = Run(42)
run.log("a line")
run.finish(timeout_s=60)  # within two seconds: there is no server
names = ["opentelemetry.sdk.trace", "opentelemetry.exporter", "trainwire.ingest.tracing"]
print(json.dumps({{"traceparent": run.origin.traceparent, "imported": [n for n in names if n in sys.modules]}}))
"""
OWN_SPAN = """
from opentelemetry.sdk.trace import TracerProvider
own = TracerProvider().get_tracer("own").start_span("training")
from opentelemetry.trace import use_span
print(f"{own.get_span_context().trace_id:032x} {own.get_span_context().span_id:016x}", file=sys.stderr)
"""


def run(before: str = "", inside: str = "", **env: str) -> tuple[dict[str, Any], str]:
    """Run a training without a server; return what it printed, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(before=before, inside=inside)],
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": "redis://127.0.0.1:1", **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"TRACEPARENT": f"00-{'1' * 32}-{'2' * 16}-01"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
    ],
    ids=["nothing set", "no collector", "disabled"],
)
def test_without_a_collector_nothing_is_imported(env: dict[str, str]) -> None:
    """A run that is not traced imports no part of tracing, and its messages carry nothing."""
    printed, _ = run(**env)
    assert printed == {"traceparent": None, "imported": []}


def test_a_run_joins_the_span_of_the_training() -> None:
    """With a current span in the training, the run is below it, whatever TRACEPARENT says."""
    with collecting() as collector:
        printed, stderr = run(
            OWN_SPAN,
            "with use_span(own): ",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            TRACEPARENT=f"00-{'1' * 32}-{'2' * 16}-01",
        )
        (span,) = collector.named("run")
    assert [span.trace_id, span.parent_id] == stderr.splitlines()[0].split()
    assert printed["traceparent"][3:52] == span.identity


def test_a_run_that_is_not_sampled_exports_nothing() -> None:
    """The decision of the sampler is in the messages of the run; an invalid TRACEPARENT is ignored."""
    with collecting() as collector:
        printed, _ = run(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_TRACES_SAMPLER="always_off", TRACEPARENT="x" * 10_000
        )
        assert int(printed["traceparent"][-2:], 16) & 1 == 0
        assert collector.requests == 0


def test_the_spool_keeps_the_trace(tmp_path: Path) -> None:
    """What another process sends of a run that has ended is still in the trace of the run."""
    printed, _ = run(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", TRAINWIRE_SPOOL_DIR=str(tmp_path / "kept"))
    (path,) = source_folders(tmp_path / "kept")
    folder = SourceFolder.claim(path)
    assert folder is not None
    outbox, _ = resumed(Spool(folder, 2**30))
    assert outbox.origin.traceparent == printed["traceparent"]
    outbox.forget()
