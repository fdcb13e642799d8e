"""`trainwire delete`: a dry run, a confirmation, the result of each store, and the exit code."""

from __future__ import annotations

import json
import sys
from io import StringIO

import pytest
from sqlalchemy import text

from tests.factories import Sender, checkpoint, completion, drain, logs, metrics, rows
from tests.integration.cli.conftest import Trainwire
from tests.integration.conftest import Bucket
from tests.twins.loki import LokiTwin
from trainwire.schemas.keys import JOB_DELETED_FIELD, acks_key
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.tables import training_jobs, training_logs
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

HOSTILE = "[red]x[/red] \x1b]0;x\x07\x1b[2Jend"


@pytest.fixture
def job(resources: Resources, sender: Sender, alone: pytest.MonkeyPatch) -> int:
    """A job that has ended, on a stack without Loki."""
    alone.setenv("LOKI_ENABLED", "false")
    sender.send(metrics(loss=1.0))
    sender.send(logs("a", "b", "c"))
    sender.send(completion())
    for kind in ("metrics", "logs", "completions"):
        drain(resources, kind)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET name = :name"), {"name": HOSTILE})
    return 1


def test_a_dry_run_shows_the_rows(connected: Trainwire, resources: Resources, job: int) -> None:
    """It shows rows by table and deletes nothing; no control character reaches the terminal."""
    shown = connected("delete", str(job), "--dry-run")
    assert shown.code == 0
    assert "3 training_logs" in shown.out
    assert "1 training_metrics" in shown.out
    assert "\x1b" not in shown.out
    assert rows(resources.engine, training_jobs, "id", order=["id"]) == [1]
    document = json.loads(connected("delete", str(job), "--dry-run", "--json").out)
    assert (document["job_id"], document["rows"]["training_logs"], document["file_count"]) == (1, 3, 0)


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.usefixtures("job")
def test_each_sink_can_keep_its_copies(connected: Trainwire, sink: str) -> None:
    """There is a flag for each sink in the registry, which keeps the copies of that sink only."""
    done = json.loads(connected("delete", "1", "--yes", "--json", f"--keep-{sink}").out)
    assert [name for name in SINKS if done["parts"][name]["state"] == "kept"] == [sink]


def test_without_a_terminal_it_must_be_confirmed(connected: Trainwire, resources: Resources, job: int) -> None:
    """Without a terminal and without --yes nothing is deleted."""
    done = connected("delete", str(job))
    assert (done.code, "confirm the deletion of job 1 with --yes" in done.err) == (1, True)
    assert rows(resources.engine, training_jobs, "id", order=["id"]) == [1]


@pytest.mark.parametrize(("answer", "left"), [("n\n", [1]), ("y\n", [])])
@pytest.mark.usefixtures("job")
def test_it_asks(
    connected: Trainwire, resources: Resources, alone: pytest.MonkeyPatch, answer: str, left: list[int]
) -> None:
    """Without a confirmation the job is kept."""

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    alone.setattr(sys, "stdin", Terminal(answer))
    done = connected("delete", "1")
    assert (done.code == 0) == (not left)
    assert "Delete job 1 permanently?" in done.err
    assert rows(resources.engine, training_jobs, "id", order=["id"]) == left


def test_a_job_is_deleted_and_known_as_deleted(connected: Trainwire, resources: Resources, job: int) -> None:
    """The result of each store is shown; `status` shows the deletion; a repetition changes nothing."""
    done = connected("delete", str(job), "--yes", "--reason", "personal data")
    assert (done.code, done.out.splitlines()[0]) == (0, "job 1 is deleted")
    assert "rows in Postgres: done" in done.out
    assert "files in S3: kept" in done.out
    assert rows(resources.engine, training_logs, "seq") == []
    status = connected("status", str(job))
    assert (status.code, "job 1 was deleted" in status.err) == (1, True)
    assert "no jobs" in connected("jobs").out
    again = connected("delete", str(job), "--yes", "--json")
    document = json.loads(again.out)
    assert (again.code, document["reason"], document["parts"]["postgres"]["state"]) == (0, "personal data", "done")


def test_an_unknown_job_is_named(connected: Trainwire) -> None:
    """An unknown job is an error without a confirmation, and its number is not blocked."""
    done = connected("delete", "7", "--yes")
    assert (done.code, "no job 7 in the database" in done.err) == (1, True)


def test_a_running_job_takes_force(connected: Trainwire, resources: Resources, job: int) -> None:
    """The deletion of a running job is refused, and the error names --force."""
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = 'running'"))
    refused = connected("delete", str(job), "--yes")
    assert (refused.code, "job 1 is running" in refused.err, "--force" in refused.err) == (1, True, True)
    assert connected("delete", str(job), "--yes", "--force").code == 0


def test_a_number_is_freed_on_request(
    connected: Trainwire, resources: Resources, sender: Sender, job: int
) -> None:
    """--forget is refused for a job that is not deleted; afterwards the number is like new."""
    refused = connected("delete", str(job), "--forget")
    assert (refused.code, "job 1 was not deleted" in refused.err) == (1, True)
    connected("delete", str(job), "--yes")
    assert resources.redis.hexists(acks_key(job), JOB_DELETED_FIELD)
    freed = connected("delete", str(job), "--forget")
    assert (freed.code, "can be used again" in freed.out) == (0, True)
    assert not resources.redis.exists(acks_key(job))
    sender.send(logs("anew"), source="0-new")
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["anew"]


def test_a_number_is_freed_after_an_outage_of_redis(
    connected: Trainwire, resources: Resources, job: int, alone: pytest.MonkeyPatch
) -> None:
    """Without Redis, --forget changes nothing, so that its repetition also removes the mark for trainers."""
    connected("delete", str(job), "--yes")
    with alone.context() as away:
        away.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}")
        refused = connected("delete", str(job), "--forget")
    assert (refused.code, "job 1 stays deleted" in refused.err) == (1, True)
    assert connected("delete", str(job), "--forget").code == 0
    assert not resources.redis.exists(acks_key(job))


@pytest.mark.usefixtures("job")
def test_an_incomplete_deletion_is_reported(
    connected: Trainwire, resources: Resources, sender: Sender, bucket: Bucket, alone: pytest.MonkeyPatch
) -> None:
    """With a store that does not answer the exit code is 1; a repetition completes the deletion."""
    sender.send(checkpoint(kind="epoch", **bucket.put("checkpoints/1/1/a.pt")))
    drain(resources, "checkpoints")
    alone.setenv("TRAINWIRE_CHECKPOINT_BUCKET", bucket.name)
    shown = connected("delete", "1", "--dry-run", "--with-files").out
    assert f"s3://{bucket.name}/checkpoints/1/1/a.pt" in shown
    assert "1 files, 7 B" in shown
    with alone.context() as away:
        away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        done = connected("delete", "1", "--yes", "--with-files")
    assert (done.code, done.out.splitlines()[0]) == (1, "job 1 is deleted in part")
    assert "files in S3: not done yet, 0 of 1 deleted; S3:" in done.out
    assert "`trainwire delete 1` does so at once" in done.out
    assert bucket.has("checkpoints/1/1/a.pt")
    done = connected("delete", "1", "--yes", "--with-files")
    assert (done.code, "files in S3: done, 1 deleted" in done.out) == (0, True)
    assert not bucket.has("checkpoints/1/1/a.pt")


def test_a_loki_without_a_delete_api_is_reported(
    connected: Trainwire, resources: Resources, job: int, alone: pytest.MonkeyPatch, loki: LokiTwin
) -> None:
    """The reason and the necessary configuration are shown; the lines can be kept, and then the job is deleted."""
    alone.setenv("LOKI_ENABLED", "true")
    with resources.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO delivery_cursors (sink, job_id, confirmed_seq) VALUES ('loki', 1, 3)")
        )
    assert loki.lines() == []
    done = connected("delete", str(job), "--yes")
    assert done.code == 1
    assert "lines in Loki: could not be deleted, 0 of 3 deleted; Loki answered 404" in done.out
    assert "retention_enabled: true" in done.out
    assert "repeat `trainwire delete 1`" in done.out
    assert connected("delete", str(job), "--forget").code == 1
    assert "--keep-loki" in done.out
    done = connected("delete", str(job), "--yes", "--keep-loki")
    assert (done.code, "lines in Loki: kept" in done.out) == (0, True)
    assert connected("delete", str(job), "--forget").code == 0
