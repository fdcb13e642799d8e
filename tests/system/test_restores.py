"""Postgres, Redis or both are restored to an older state while a trainer runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from tests.factories import rows
from tests.processes import END_S, ROOT, wait_until, workers_running
from trainwire.schemas.migrations import upgrade
from trainwire.schemas.tables import source_positions, training_jobs, training_logs
from trainwire.stack.postgres import EmbeddedPostgres, binary
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.settings import Settings, load_settings

TRAINER = """
import json, os, select, sys, time
from trainwire import Run
run = Run(job_id=1, name="restored")
lines = 0
most = int(os.environ.get("MOST_LINES", sys.maxsize))
while not select.select([sys.stdin], [], [], 0.004)[0]:
    if lines < most:
        run.log(f"line {lines} {os.urandom(4000).hex()}")
        lines += 1
receipt = run.finish(timeout_s=180)
print(json.dumps({"lines": lines, "produced": receipt.produced, "stored": receipt.stored, "lost": receipt.lost}))
"""
"""Logs a line of 8 kB every 4 ms: the spool deletes a file of acknowledged messages every second."""


class Stores:
    """Servers of one test, which it may restore."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres-data")
        self.valkey = EmbeddedValkey(folder / "valkey-data")
        self.postgres.start()
        self.valkey.start()
        self.settings: Settings = load_settings(database_url=self.postgres.url, redis_url=self.valkey.url)
        self.engine: Engine = open_engine(self.settings, name="tests")
        with self.engine.begin() as connection:
            upgrade(connection)

    def close(self) -> None:
        """Stop the servers."""
        self.engine.dispose()
        self.valkey.stop()
        self.postgres.stop()

    def dump(self) -> Path:
        """Dump the database, as a backup does."""
        path = self.folder / "trainwire.dump"
        _program("pg_dump", "--format=custom", "--file", str(path), self.postgres.url)
        return path

    def restore(self, dump: Path) -> None:
        """Restore the dump into a new database, and replace the old one with it, which ends all sessions."""
        server = make_url(self.postgres.url)
        url = server.set(database="restored").render_as_string(hide_password=False)
        with psycopg.connect(
            server.set(database="postgres").render_as_string(hide_password=False), autocommit=True
        ) as admin:
            admin.execute("CREATE DATABASE restored")
            _program("pg_restore", "--exit-on-error", "--dbname", url, str(dump))
            admin.execute("ALTER DATABASE trainwire ALLOW_CONNECTIONS false")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'trainwire'")
            admin.execute("DROP DATABASE trainwire WITH (FORCE)")
            admin.execute("ALTER DATABASE restored RENAME TO trainwire")
        self.engine.dispose()

    @property
    def valkey_files(self) -> Path:
        """The folder of Redis' append-only files."""
        return self.folder / "valkey-data" / "valkey"

    def copy_redis(self) -> Path:
        """Copy the files of Redis, as a backup does that stops it for a moment."""
        path = self.folder / "valkey-copy"
        self.valkey.stop()
        shutil.copytree(self.valkey_files, path)
        self.valkey.start()
        return path

    def restore_redis(self, copy: Path) -> None:
        """Replace the files of Redis with the copied ones."""
        self.valkey.kill()
        shutil.rmtree(self.valkey_files)
        shutil.copytree(copy, self.valkey_files)
        self.valkey.start()

    @property
    def lines(self) -> int:
        """The number of stored lines."""
        with self.engine.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM training_logs")).scalar_one())

    @property
    def duplicates(self) -> int:
        """The number of duplicate entries."""
        with self.engine.connect() as connection:
            return int(connection.execute(text("SELECT sum(duplicates) FROM ingest_cursors")).scalar_one())

    @property
    def lost(self) -> list[tuple[int, int, str]]:
        """The ranges of log messages that are marked as lost."""
        return [
            tuple(gone)
            for kind, lost in rows(self.engine, source_positions, "kind", "lost", order=("kind",))
            if kind == "logs"
            for gone in lost
        ]

    def missing(self) -> list[Any]:
        """The ranges that are neither stored nor marked as lost."""
        return [gap for gaps in rows(self.engine, source_positions, "missing", order=("kind",)) for gap in gaps]

    def more_arrive(self, lines: int = 500) -> None:
        """Wait until so many more lines are stored."""
        before = self.lines
        wait_until(lambda: self.lines >= before + lines, f"{lines} more lines", 180)

    def resends_end(self) -> None:
        """Let rounds of 1,000 lines arrive until one brings fewer than 20 duplicates; fail after six rounds.

        Several rounds: on a busy machine the trainer resends late, and again what the workers have not yet read.
        """
        counts: list[int] = []
        while not counts or counts[-1] >= 20:
            assert len(counts) < 6, f"resends without end: duplicates in each 1,000 lines: {counts}"
            before = self.duplicates
            self.more_arrive(1000)
            counts.append(self.duplicates - before)

    def status(self) -> str:
        """Return the output of `trainwire status 1`."""
        return trainwire(self, "status", "1").stdout


def _program(name: str, *arguments: str) -> None:
    subprocess.run([str(binary(name)), *arguments], check=True, capture_output=True, timeout=120)


def trainwire(stores: Stores, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    env = {"DATABASE_URL": stores.postgres.url, "REDIS_URL": stores.valkey.url, "LOKI_ENABLED": "false"}
    return subprocess.run(
        [sys.executable, "-m", "trainwire", *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """A Postgres and a Redis of one test, with workers."""
    stores = Stores(tmp_path)
    try:
        with workers_running(stores.settings, tmp_path, LOST_AFTER_S="30"):
            yield stores
    finally:
        stores.close()


@contextmanager
def trainer_running(stores: Stores, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a trainer; yield when its first lines are stored."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER],
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": stores.valkey.url, "TRAINWIRE_SETTLE_S": "60", **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        stores.more_arrive(200)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=END_S)


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the trainer end, and return its own counts."""
    output, _ = process.communicate("\n", timeout=240)
    return dict(json.loads(output))


def stored_numbers(stores: Stores) -> list[int]:
    """Return the numbers of the stored lines in order, and check that each is there once."""
    found = [int(line.split()[1]) for line in rows(stores.engine, training_logs, "content")]
    assert len(found) == len(set(found))
    return sorted(found)


def check_sum(stores: Stores, counts: dict[str, Any]) -> None:
    """Each message is stored or lost, as the trainer's receipt states, and the status names the lost ranges."""
    wait_until(lambda: not stores.missing(), "no gap", 120)
    lost = sum(last - first + 1 for first, last, _ in stores.lost)
    assert counts["stored"]["logs"] + lost == counts["produced"]["logs"]
    assert counts["lost"] == ({"logs": lost} if lost else {})
    shown = stores.status()
    if not lost:
        assert "\ncomplete: " in shown
        assert stored_numbers(stores) == list(range(counts["lines"]))
        return
    assert "\naccounted: " in shown
    assert f" + 0 missing + {lost:,} lost ({lost:,} restored) + 0 dropped" in shown
    assert "; lost: logs of " in shown
    assert counts["lines"] - len(stored_numbers(stores)) > 0


def test_postgres_goes_back_under_a_trainer(stores: Stores) -> None:
    """The trainer resends its kept messages once and declares the rest lost, and its acks go on."""
    with trainer_running(stores) as trainer:
        dump = stores.dump()
        stores.more_arrive(2000)
        stores.restore(dump)
        stores.more_arrive(1000)
        wait_until(lambda: stores.lost and not stores.missing(), "the lost range", 120)
        stores.resends_end()
        check_sum(stores, end(trainer))
        assert stores.lost
        assert not list((stores.folder / "spool").iterdir())


def test_postgres_goes_back_under_a_trainer_that_then_ends(stores: Stores) -> None:
    """A trainer whose last message is its completion still learns of the rows that Postgres has lost."""
    with trainer_running(stores) as trainer:
        dump = stores.dump()
        stores.more_arrive(1500)
        stores.restore(dump)
        check_sum(stores, end(trainer))


def test_a_small_spool_and_a_killed_trainer(stores: Stores) -> None:
    """The messages left by a killed trainer are sent and the rest declared lost; then the spool is empty."""
    with trainer_running(stores, TRAINWIRE_SPOOL_BYTES="4194304") as trainer:
        dump = stores.dump()
        stores.more_arrive(2000)
        stores.restore(dump)
        stores.more_arrive(100)
        trainer.kill()
        trainer.wait(END_S)
    sent = trainwire(stores, "spool", "send", "--timeout", "60")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "nothing is left in" in sent.stdout
    assert not stores.missing()
    assert sum(last - first + 1 for first, last, _ in stores.lost)
    assert " lost (" in stores.status()


def test_redis_goes_back_to_yesterday(stores: Stores) -> None:
    """After old entries and old acks return, each line is stored once, and the resends end."""
    with trainer_running(stores) as trainer:
        copy = stores.copy_redis()
        stores.more_arrive(1000)
        stores.restore_redis(copy)
        stores.more_arrive(1000)
        stores.resends_end()
        check_sum(stores, end(trainer))
        assert not stores.lost


def test_both_go_back(stores: Stores) -> None:
    """Postgres and Redis are restored to backups of different times: the sum names the lost messages."""
    with trainer_running(stores) as trainer:
        copy = stores.copy_redis()
        stores.more_arrive(500)
        dump = stores.dump()
        stores.more_arrive(1500)
        stores.restore_redis(copy)
        stores.restore(dump)
        stores.more_arrive(1000)
        check_sum(stores, end(trainer))


def test_a_trainer_that_is_quiet_and_one_that_has_ended(stores: Stores) -> None:
    """`trainwire reconcile` names missing messages; a living trainer repairs the gap, an ended one cannot."""
    with trainer_running(stores, MOST_LINES="1500") as trainer:
        dump = stores.dump()
        wait_until(lambda: stores.lines == 1500, "all lines", 120)
        stores.restore(dump)
        reconciled = trainwire(stores, "reconcile")
        assert " acknowledged messages are missing in Postgres" in reconciled.stdout, reconciled.stderr
        wait_until(lambda: stores.lost and not stores.missing(), "the lost range", 120)
        check_sum(stores, end(trainer))
    stores.restore(dump)
    reconciled = trainwire(stores, "reconcile")
    assert "job 1, completions of 0-" in reconciled.stdout
    assert "nothing is missing in Postgres" in trainwire(stores, "reconcile").stdout
    shown = stores.status()
    assert "; missing: completions of 0-" in shown
    wait_until(
        lambda: rows(stores.engine, training_jobs, "status", order=("id",)) == ["lost"], "the loss of the job", 150
    )
