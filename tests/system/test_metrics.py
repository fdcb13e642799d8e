"""The exporter as a process beside workers that are killed."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from tests.factories import Sender, logs
from tests.processes import START_TIMEOUT_S, Process, wait_until, workers_running
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of
from trainwire.stack.persisted_config import usable_port
from trainwire.workers.resources import Resources

JOB, MESSAGES, LINES = 1, 200, 50


def scraped(port: int, metric: str, **labels: str) -> float | None:
    """Return a value of a scrape, None if it is missing."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    named = ",".join(f'{name}="{value}"' for name, value in labels.items())
    found = re.search(rf"^{re.escape(f'{metric}{{{named}}}')} (\S+)$", text, flags=re.MULTILINE)
    return None if found is None else float(found[1])


def test_counters_are_right_however_workers_die(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """After workers were killed during drains, entries less duplicates are the messages, and rows the lines."""
    port = usable_port(tmp_path, "metrics")
    exporter = Process(resources.settings, tmp_path / "metrics.log", "metrics", "--port", str(port)).start()
    value = partial(scraped, port, kind="logs", shard=str(shard_of(JOB, DEFAULT_SHARDS)))
    try:
        wait_until(lambda: "metrics.serving" in exporter.output, "the exporter's start")
        with workers_running(resources.settings, tmp_path, workers=2) as workers:
            for number in range(1, MESSAGES + 1):
                sender.send(logs(*(f"{number}.{line}" for line in range(LINES))), job=JOB)
                if number % 50 == 0:
                    wait_until(lambda: value("trainwire_ingest_rows_total"), "first rows")
                    workers[number // 50 % 2].kill()
                    workers[number // 50 % 2].start()
            wait_until(lambda: value("trainwire_ingest_rows_total") == MESSAGES * LINES, "all rows", 180)
            wait_until(lambda: value("trainwire_stream_lag_entries") == 0, "an empty stream")
        entries = value("trainwire_ingest_entries_total") or 0
        assert entries - (value("trainwire_ingest_duplicate_entries_total") or 0) == MESSAGES
        assert value("trainwire_ingest_rows_total") == MESSAGES * LINES
    finally:
        exporter.stop()
    assert exporter.process.returncode == 0


def test_a_port_that_is_taken_is_named(resources: Resources, tmp_path: Path) -> None:
    """An exporter that cannot listen names its address and port, and ends with the code of a wrong setting."""
    port = usable_port(tmp_path, "metrics")
    first = Process(resources.settings, tmp_path / "first.log", "metrics", "--port", str(port)).start()
    try:
        wait_until(lambda: "metrics.serving" in first.output, "the exporter's start")
        second = Process(resources.settings, tmp_path / "second.log", "metrics", "--port", str(port)).start()
        assert second.process.wait(START_TIMEOUT_S) == 78
        assert f"--port {port}: Address already in use" in second.output
    finally:
        first.stop()


def test_on_loopback_only_local_names_are_answered(resources: Resources, tmp_path: Path) -> None:
    """A foreign host name (DNS rebinding) gets 403 and no metrics."""
    port = usable_port(tmp_path, "metrics")
    exporter = Process(resources.settings, tmp_path / "metrics.log", "metrics", "--port", str(port)).start()

    def status(host: str) -> int:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Host": host})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    try:
        wait_until(lambda: "metrics.serving" in exporter.output, "the exporter's start")
        assert [status(host) for host in ("localhost", f"127.0.0.1:{port}", "[::1]")] == [200, 200, 200]
        assert [status(host) for host in ("evil.example", f"evil.example:{port}", "10.0.0.1", "[")] == [403] * 4
    finally:
        exporter.stop()
