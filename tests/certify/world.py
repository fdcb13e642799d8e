"""The servers of one lane, and the processes of one run on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import redis
import sqlalchemy
from sqlalchemy import Engine, make_url, text

from tests.processes import ROOT
from tests.s3 import free_port, s3_client, s3_environment, s3_server
from tests.webhook_receiver import Receiver, receiving
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.tables import metadata
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.deletion import Choice, start_deletion
from trainwire.workers.sinks.mlflow.plugin import mlflow_api

if TYPE_CHECKING:
    from tests.mlflow_server import MlflowServer

OUTAGE_S: Final = 0.6
LOKI: Final = """
import threading
from tests.twins.loki import Limits, LokiTwin
with LokiTwin(limits=Limits(deletion="filter-and-delete")) as twin:
    print(twin.url, flush=True)
    threading.Event().wait()
"""
BUCKET: Final = "certified"


class World:
    """The servers and the folder of a lane; `reset` empties all of them."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        valkey: EmbeddedValkey,
        loki_url: str,
        receiver: Receiver,
    ) -> None:
        self.root = folder
        self.folder = folder / "run"
        self.database_url = database_url
        self.valkey = valkey
        self.redis_url = redis_url = valkey.url
        self.receiver = receiver
        """Receives alerts."""
        self.loki_url = loki_url
        self.bucket_url: str | None = None
        self.redis: Any = redis.Redis.from_url(redis_url)
        self.engine: Engine = sqlalchemy.create_engine(
            make_url(database_url).set(drivername="postgresql+psycopg"), pool_size=1, pool_pre_ping=True
        )
        self.gateway_port = free_port()
        self.job = 0
        """The number of the job of this run; each run has its own, and all have the last one of four shards."""
        self._last_job = -1
        self.failing_role: str | None = None
        """The role of the call that fails in this run; None in a run without a failure."""
        self.own_run = ""
        """The run that the trainer has created in MLflow itself."""
        self.is_watched = self.has_launcher = self.has_receipts = self.is_restored = False

    def reset(self) -> None:
        """Empty all stores, and begin a new folder and job."""
        self._last_job += 4
        self.job = self._last_job
        self.is_restored = False
        self.own_run = ""
        self.receiver.status = 204
        self.receiver.requests.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.redis.flushall()
        self._control("DELETE", "faults")
        names = [table.name for table in metadata.sorted_tables]
        filled = " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})" for name in names)
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid()"
                )
            )
            connection.execute(text(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"))
            connection.execute(text("ALTER TABLE training_logs DROP CONSTRAINT IF EXISTS refused"))
            if found := list(connection.execute(text(filled)).scalars()):
                connection.execute(text(f"TRUNCATE {', '.join(found)}"))

    @cached_property
    def mlflow(self) -> MlflowServer:
        """A real MLflow server, started with the first access."""
        from tests.mlflow_server import MlflowServer  # noqa: PLC0415 - few scenarios have one

        folder = self.root / "mlflow"
        folder.mkdir()
        server = MlflowServer(folder).start()
        mlflow_api(server.url)  # its import takes seconds, which each worker would need
        return server

    def close(self) -> None:
        """Stop the servers that were started on demand."""
        if "mlflow" in vars(self):
            self.mlflow.kill()

    @property
    def failed_call(self) -> str:
        """The call that has failed in this run so far; empty if there is none."""
        record = self.folder / "calls.tsv"
        lines = record.read_text().splitlines() if record.exists() else []
        return next((line.split("\t")[2] for line in lines if line.startswith("FAILED")), "")

    def objects(self, uri: str) -> list[Any]:
        """Return the objects below the folder of a checkpoint's URI."""
        assert self.bucket_url is not None
        place = S3Uri.parse(uri)
        found = s3_client(self.bucket_url).list_objects_v2(
            Bucket=place.bucket, Prefix=place.key.rpartition("/")[0]
        )
        return list(found.get("Contents", []))

    def left_in_bucket(self) -> list[str]:
        """Return the keys of the job's objects and of its open multipart uploads."""
        assert self.bucket_url is not None
        client = s3_client(self.bucket_url)
        keys = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
        keys += [each["Key"] for each in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]
        return [key for key in keys if str(self.job) in key.split("/")]

    def take_loki_away(self) -> None:
        """Let Loki refuse the next three pushes with status 503."""
        self._control("POST", "faults", '{"status": 503, "times": 3}')

    def take_redis_away(self) -> None:
        """Let Redis close all connections, and answer no client for `OUTAGE_S` seconds."""
        self.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.redis.execute_command("CLIENT", "PAUSE", int(OUTAGE_S * 1000), "ALL")

    def take_postgres_away(self) -> None:
        """Let Postgres end all sessions of the database, and refuse new ones for `OUTAGE_S` seconds."""
        name = make_url(self.database_url).database
        server = make_url(self.database_url).set(database="postgres").render_as_string(hide_password=False)
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            time.sleep(OUTAGE_S)
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

    def delete(self) -> None:
        """Ask for the deletion of the job, as the gateway does."""
        start_deletion(
            self.engine,
            self.redis,
            self.job,
            Choice(with_files=True),
            by="certification",
            reason=None,
            force=True,  # its trainer may have been killed
            on_unpublished=lambda _: None,
        )

    def _control(self, method: str, path: str, body: str | None = None) -> None:
        import requests  # noqa: PLC0415

        requests.request(method, f"{self.loki_url}/twin/{path}", data=body, timeout=10)


@contextmanager
def world_of(folder: Path, database_url: str, *, has_bucket: bool) -> Iterator[World]:
    """Start the servers of a lane, set the environment of its processes, and yield the lane's world.

    `has_bucket` adds an S3 server.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with EmbeddedValkey(folder) as valkey, _loki_twin() as loki_url, receiving() as receiver:
        os.environ |= {
            "DATABASE_URL": database_url,
            "REDIS_URL": valkey.url,
            "LOKI_URL": loki_url,
            "LOKI_LINGER_S": "0.01",
            "DELIVERY_BACKOFF_CAP_S": "0.2",
            "TRAINWIRE_PROVENANCE": "off",
            "PYTHONWARNINGS": "ignore",
        }
        with suppress(KeyError):
            del os.environ["STREAMS_URL"]
        with closing(World(folder, database_url, valkey, loki_url, receiver)) as world:
            if not has_bucket:
                yield world
                return
            with s3_server() as url:
                os.environ |= s3_environment(url) | {"TRAINWIRE_CHECKPOINT_BUCKET": BUCKET}
                s3_client(url).create_bucket(Bucket=BUCKET)
                world.bucket_url = url
                yield world


@contextmanager
def _loki_twin() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", LOKI], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()
