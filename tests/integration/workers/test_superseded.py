"""Uploads that a newer one has superseded, and uploads that no row names, on a real S3 server."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, SECOND_NS, Sender, checkpoint, completion, drain, rows
from tests.integration.conftest import Bucket
from trainwire.cli.commands.jobs.checkpoints import download
from trainwire.schemas.checkpoint_keys import S3Uri, new_upload_folder
from trainwire.schemas.tables import training_checkpoints, training_jobs
from trainwire.schemas.wire.messages import Metrics
from trainwire.stack.errors import Problem
from trainwire.stores.files.s3 import S3Store, S3Unavailable, open_s3
from trainwire.stores.postgres.checkpoints import NotFetchable, find_checkpoints, find_source
from trainwire.workers.checkpoints.orphans import OrphanSweep
from trainwire.workers.checkpoints.retention import MAX_REFUSALS, Retention, retain
from trainwire.workers.checkpoints.surplus import RetentionPolicy, Surplus, _is_free
from trainwire.workers.checkpoints.verification import Verification
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings

Save = Callable[..., int]


def upload_key(name: str, job: int = 1, attempt: int = 1) -> str:
    """Return a key as the SDK makes it."""
    return f"checkpoints/{job}/{attempt}/{new_upload_folder(NOW_NS)}/{name}"


@pytest.fixture
def save(resources: Resources, sender: Sender, bucket: Bucket) -> Save:
    """Give a function that uploads a checkpoint of a running job and stores its row, verified; it returns its seq.

    `at_s` is the trainer's time, `age_s` how long ago it was verified.
    """
    count = 0

    def save(
        *,
        name: str = "last.pt",
        key: str | None = None,
        age_s: float = 660,
        at_s: int | None = None,
        source: str = "0-test",
        job: int = 1,
        attempt: int = 1,
        files: dict[str, bytes] | None = None,
        **fields: Any,
    ) -> int:
        nonlocal count
        count += 1
        key = key or upload_key(name, job, attempt)
        data = b"%d" % count
        put = bucket.put_folder(key, **files or {"a": data}) if key.endswith("/") else bucket.put(key, data)
        body = checkpoint(**{"kind": "last"} | put | fields)
        body.ts = NOW_NS + (count if at_s is None else at_s) * SECOND_NS
        sender.send(body, job=job, attempt=attempt, source=source)
        drain(resources, "checkpoints", job)
        Verification(resources.engine, open_s3, [f"s3://{bucket.name}/"], slice_s=0).run()
        with resources.engine.begin() as connection:
            seq: int = connection.execute(
                text(
                    "UPDATE training_checkpoints SET verified_at = verified_at - make_interval(secs => :age) "
                    "WHERE job_id = :job AND uri = :uri RETURNING seq"
                ),
                {"age": age_s, "job": job, "uri": put["uri"]},
            ).scalar_one()
        return seq

    return save


def remove(resources: Resources, bucket: Bucket, store: Callable[[], Any] = open_s3) -> list[int]:
    """Delete superseded uploads as a worker does; return their seqs."""
    done = Retention(resources.engine, store, RetentionPolicy(1, bucket.name, "checkpoints")).run(
        dry_run=False, rule="superseded"
    )
    return [each.seq for each in done]


def states(resources: Resources, job: int = 1) -> list[str]:
    """Return the states of a job's checkpoints."""
    with resources.engine.connect() as connection:
        return [file.state for file in find_checkpoints(connection, job)]


def test_an_older_last_goes_once_a_newer_one_is_verified(resources: Resources, save: Save, bucket: Bucket) -> None:
    """An older `last` is deleted ten minutes after the newer one was verified, also of a running job."""
    for step in (1, 2):
        save(name="last.pt", step=step)
        save(name="last/", step=step)
    save(name="last.pt", step=3, age_s=0)
    assert remove(resources, bucket) == [1, 2]
    assert states(resources) == ["deleted", "deleted", "verified", "verified", "verified"]
    assert len(bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]) == 4
    assert remove(resources, bucket) == []


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "epoch", "step": 2},
        {"epoch": 2},
        {"attempt": 2},
        {"source": "1-other"},
        {"name": "last.bin"},
        {"name": "last/"},
        {"kind": "mine"},
    ],
)
def test_only_the_same_slot_supersedes(
    resources: Resources, save: Save, bucket: Bucket, other: dict[str, Any]
) -> None:
    """Another epoch, attempt, source, suffix or kind, or another step of `epoch`, supersedes nothing."""
    save(step=1, **{name: other[name] for name in other if name == "kind"})
    save(**{"step": 2} | other)
    assert remove(resources, bucket) == []


def test_a_file_of_the_users_own_is_not_superseded(resources: Resources, save: Save, bucket: Bucket) -> None:
    """Only uploads of the SDK are deleted while their job runs, not the files beside them."""
    for _ in range(2):
        save(key=f"checkpoints/1/1/mine-{len(states(resources))}.pt")
        save(key=f"elsewhere/{new_upload_folder(NOW_NS)}/last.pt")
        save(key=upload_key("last.pt", job=2))
    assert remove(resources, bucket) == []


def test_the_best_is_not_superseded(resources: Resources, save: Save, bucket: Bucket) -> None:
    """The newest best checkpoint and the paths of the job are kept."""
    for step in (1, 2, 3, 4):
        save(step=step, is_best=step in {1, 2})
    assert remove(resources, bucket) == [1, 3]
    save(step=5)
    path = "(SELECT uri FROM training_checkpoints WHERE seq = 4)"
    with resources.engine.begin() as connection:
        connection.execute(text(f"UPDATE training_jobs SET last_checkpoint_path = {path}"))
    assert remove(resources, bucket) == []


def test_a_checkpoint_used_by_another_job_is_not_superseded(
    resources: Resources, sender: Sender, save: Save, bucket: Bucket
) -> None:
    """A running job that began from it protects it until it ends, and so does its own job."""
    for step in (1, 2, 3):
        save(step=step)
    first, second, _ = rows(resources.engine, training_checkpoints, "uri")
    sender.send(Metrics(ts=NOW_NS, params={"init": first}), job=2)
    sender.send(Metrics(ts=NOW_NS, params={"resume_from": second}), job=1)
    drain(resources, "metrics", 1)
    drain(resources, "metrics", 2)
    assert remove(resources, bucket) == []
    sender.send(completion(), job=2)
    drain(resources, "completions", 2)
    assert remove(resources, bucket) == [1]


@pytest.mark.parametrize("wrong", ["message that arrived late", "clock that was set back"])
def test_an_older_checkpoint_is_not_taken_for_the_newer(
    resources: Resources, save: Save, bucket: Bucket, wrong: str
) -> None:
    """If number and clock disagree about the newer one, both are kept."""
    save(step=2, at_s=200)
    save(step=1, at_s=100)
    assert remove(resources, bucket) == [], wrong


def test_the_files_of_all_ranks_of_a_step_stay_together(resources: Resources, save: Save, bucket: Bucket) -> None:
    """A rank's files of a step are kept while another rank has nothing newer than the step."""
    for step, source in ((1, "0-a"), (1, "1-b"), (2, "0-a"), (2, "1-b"), (3, "0-a")):
        save(name=f"last-step{step}.pt", step=step, source=source)
    assert remove(resources, bucket) == [1, 2]
    save(name="last-step3.pt", step=3, source="1-b")
    assert remove(resources, bucket) == [3, 4]


def test_an_unverified_checkpoint_supersedes_nothing(resources: Resources, save: Save, bucket: Bucket) -> None:
    """A newer upload that is missing, different or not verified yet does not delete the older one."""
    save(step=1)
    save(step=2)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_checkpoints SET verified_at = NULL WHERE seq = 2"))
    assert remove(resources, bucket) == []


def test_the_last_ones_of_a_finished_job_are_of_different_slots(
    resources: Resources, sender: Sender, save: Save, bucket: Bucket
) -> None:
    """Uploads that are superseded do not push older epochs out of those that stay."""
    for epoch in (1, 2, 3):
        save(kind="epoch", epoch=epoch, name=f"epoch-{epoch}.pt")
        save(step=epoch, age_s=0)
    sender.send(completion(last_checkpoint_path="/elsewhere", ts=NOW_NS + 10_000 * SECOND_NS))
    drain(resources, "completions")
    done = Retention(resources.engine, open_s3, RetentionPolicy(2, bucket.name, "checkpoints")).run(dry_run=False)
    assert [each.seq for each in done] == [1, 3]


class Dying(S3Store):
    """A store whose process or server dies before a given request to delete."""

    def __init__(self, before: int, failure: type[BaseException]) -> None:
        super().__init__(open_s3()._client)
        self._before, self._failure = before, failure

    def delete(self, uri: S3Uri) -> None:
        """Delete an object, or die."""
        self._before -= 1
        if self._before < 0:
            raise self._failure
        super().delete(uri)


@pytest.mark.parametrize(
    ("before", "failure"),
    [(0, KeyboardInterrupt), (1, S3Unavailable), (2, KeyboardInterrupt), (3, KeyboardInterrupt)],
)
def test_a_deletion_that_ends_early_leaves_no_verified_row(
    resources: Resources, save: Save, bucket: Bucket, before: int, failure: type[BaseException]
) -> None:
    """After the first request the row is not offered any more; the next run completes the deletion."""
    key = upload_key("last/")
    save(key=key, step=1, files={"a": b"1", "b": b"2", "c": b"3"})
    save(name="last/", step=2)
    with pytest.raises((KeyboardInterrupt, Unavailable)):
        remove(resources, bucket, lambda: Dying(before, failure))
    with resources.engine.connect() as connection, pytest.raises(NotFetchable, match="was deleted by retention"):
        find_source(connection, 1, "1")
    assert states(resources) == ["deleted", "verified"]
    assert rows(resources.engine, training_checkpoints, "deleted_at") == [None, None]
    assert remove(resources, bucket) == [1]
    left = [found["Key"] for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]]
    assert not [each for each in left if each.startswith(key)]


def test_keys_that_may_not_delete_change_nothing(resources: Resources, save: Save, bucket: Bucket) -> None:
    """After a 403 the rows stay verified; a run ends after ten refusals."""
    for step in range(MAX_REFUSALS + 3):
        save(step=step)
    bucket.forbid("checkpoints/", "s3:DeleteObject")
    asked = CountingStore()
    assert remove(resources, bucket, lambda: asked) == []
    assert asked.requests == MAX_REFUSALS
    assert set(states(resources)) == {"verified"}


@pytest.mark.parametrize(
    ("name", "reads"), [("last.pt", 1), ("last/", 1), ("last/", 2), ("last/", 4), ("last/", 5)]
)
def test_a_download_of_a_removed_checkpoint_is_whole_or_an_error(
    *, resources: Resources, save: Save, bucket: Bucket, tmp_path: Path, name: str, reads: int
) -> None:
    """If retention deletes a checkpoint during its download, no part of it is left."""
    files = {"a": b"1", "b": b"2", "c": b"3"}
    for step in (1, 2):
        save(name=name, step=step, files=files)
    with resources.engine.connect() as connection:
        source = find_source(connection, 1, "1")
    store = Interrupted(reads, lambda: remove(resources, bucket))
    target = tmp_path / "target"
    is_whole = reads > len(files) + 1
    with nullcontext() if is_whole else pytest.raises(Problem, match="it was deleted"):
        download(store, source, target, force=False, advance=lambda _: None)
    left = {path.name: path.read_bytes() for path in target.iterdir()} if target.exists() else {}
    assert left == (files if is_whole else {})
    assert [path for path in tmp_path.iterdir() if path != target and "target" in path.name] == []


class Interrupted(S3Store):
    """A store that calls a function before a given read."""

    def __init__(self, at: int, then: Callable[[], object]) -> None:
        super().__init__(open_s3()._client)
        self._at, self._then = at, then
        self.reads = 0

    def read(self, uri: S3Uri) -> Iterator[bytes]:
        """Yield the bytes of an object in pieces."""
        self.reads += 1
        if self.reads == self._at:
            self._then()
        yield from super().read(uri)


class CountingStore(S3Store):
    """A store that counts the requests to delete."""

    def __init__(self) -> None:
        super().__init__(open_s3()._client)
        self.requests = 0

    def delete(self, uri: S3Uri) -> None:
        """Delete an object."""
        self.requests += 1
        super().delete(uri)


def with_settings(resources: Resources, bucket: Bucket, **more: Any) -> Resources:
    """Return the same stores with settings of workers that know the bucket."""
    known = resources.settings
    settings = load_settings(
        database_url=known.database_url.get_secret_value(),
        redis_url=known.redis_url.get_secret_value(),
        trainwire_checkpoint_bucket=bucket.name,
        **more,
    )
    return replace(resources, settings=settings)


@pytest.mark.parametrize(("choice", "left"), [("on", 1), ("dry-run", 2), ("off", 2)])
def test_it_is_on_unless_it_is_switched_off(
    *, resources: Resources, save: Save, bucket: Bucket, choice: str, left: int
) -> None:
    """By default superseded uploads are deleted; `off` and `dry-run` delete nothing."""
    save(step=1)
    save(step=2)
    chosen = {} if choice == "on" else {"checkpoint_remove_superseded": choice}
    retain(with_settings(resources, bucket, **chosen), open_s3)
    assert states(resources).count("verified") == left


def test_without_a_bucket_no_store_is_asked(resources: Resources, save: Save) -> None:
    """Workers that do not know where trainers upload delete nothing."""
    save(step=1)
    save(step=2)
    retain(resources, lambda: pytest.fail("the object store was asked"))


@pytest.fixture
def orphans(bucket: Bucket) -> list[str]:
    """Return the keys that two killed uploads of job 1 have left: files of a folder, and parts of a file."""
    key = upload_key("epoch-1/")
    for name in ("a", "b"):
        bucket.put(key + name)
    parts = upload_key("last.pt")
    created = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=parts)
    bucket.client.upload_part(
        Bucket=bucket.name, Key=parts, UploadId=created["UploadId"], PartNumber=1, Body=b"part"
    )
    return [f"{key}a", f"{key}b", parts]


def open_uploads(bucket: Bucket) -> list[str]:
    """Return the keys of the multipart uploads that are neither complete nor aborted."""
    return [each["Key"] for each in bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])]


def sweep(resources: Resources, bucket: Bucket, *, days_ago: float = 8, dry_run: bool = False) -> int:
    """Remove orphans as a worker does, of jobs that ended so many days ago, with files as old as the jobs."""
    configured = with_settings(resources, bucket)
    with resources.engine.begin() as connection:
        ended = "now() - make_interval(secs => :age_s)"
        connection.execute(
            text(
                f"UPDATE training_jobs SET created_at = {ended}, last_seen_at = {ended}, completed_at = {ended}, "
                f"quiet_since = {ended}"
            ),
            {"age_s": days_ago * 86_400},
        )
    return OrphanSweep(configured, lambda: LaterStore(days_ago)).run(dry_run=dry_run)


class LaterStore(S3Store):
    """A store all objects of which were written some days before."""

    def __init__(self, days: float) -> None:
        super().__init__(open_s3()._client)
        self._age_s = days * 86_400

    def objects(self, folder: S3Uri) -> Iterator[Any]:
        """Yield the objects below a folder's key."""
        for found in super().objects(folder):
            yield found._replace(written_at=found.written_at.fromtimestamp(self._earlier(found.written_at), UTC))

    def open_uploads(self, folder: S3Uri) -> Iterator[Any]:
        """Yield the open multipart uploads below a folder's key."""
        for found in super().open_uploads(folder):
            yield found._replace(began_at=found.began_at.fromtimestamp(self._earlier(found.began_at), UTC))

    def _earlier(self, at: Any) -> float:
        return float(at.timestamp()) - self._age_s


def test_leftovers_of_killed_uploads_are_deleted_a_week_after_the_job(
    *, resources: Resources, save: Save, finish: Callable[..., None], bucket: Bucket, orphans: list[str]
) -> None:
    """Only objects and multipart uploads that no row names, and that the SDK made for this job, are deleted."""
    save(step=1)
    save(name="epoch-2/", kind="epoch", epoch=2)
    used = bucket.put(upload_key("last.pt"))
    foreign = [bucket.put(key) for key in ("checkpoints/1/1/mine.pt", "checkpoints/11/1/x.pt", "checkpoints/1/y")]
    finish()
    finish(2, last_checkpoint_path=used["uri"])
    before = {found["Key"] for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]}
    assert sweep(resources, bucket, days_ago=6) == 0
    assert sweep(resources, bucket, dry_run=True) == 2
    assert {found["Key"] for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]} == before
    assert sweep(resources, bucket) == 2
    left = {found["Key"] for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]}
    assert before - left == set(orphans[:2])
    assert open_uploads(bucket) == []
    assert len(foreign) == 3
    assert None not in rows(resources.engine, training_jobs, "files_swept_at", order=["id"])


def test_an_upload_that_was_begun_twice_keeps_its_object_only(
    resources: Resources, save: Save, finish: Callable[..., None], bucket: Bucket
) -> None:
    """A multipart upload whose begin had no answer is aborted later; the checkpoint of the second one stays."""
    key = upload_key("last.pt")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    save(key=key, step=1)
    finish()
    assert sweep(resources, bucket) == 1
    assert open_uploads(bucket) == []
    assert states(resources) == ["verified"]
    assert [found["Key"] for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]] == [key]


@pytest.mark.parametrize("status", ["pending", "running", "stalled"])
def test_uploads_of_a_job_at_work_may_still_be_recorded(
    *, resources: Resources, save: Save, bucket: Bucket, orphans: list[str], status: str
) -> None:
    """Nothing of a job that has not ended is an orphan."""
    save(step=1)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = :status"), {"status": status})
    assert sweep(resources, bucket) == 0
    assert all(bucket.has(key) for key in orphans[:2])


def test_a_job_is_looked_at_once_after_each_end(
    *, resources: Resources, finish: Callable[..., None], bucket: Bucket, orphans: list[str]
) -> None:
    """A folder is listed once, and again only after another attempt of its job."""
    finish()
    assert sweep(resources, bucket) == 2
    bucket.put(orphans[0])
    assert sweep(resources, bucket) == 0
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET files_swept_at = now() - interval '30 days'"))
    assert sweep(resources, bucket) == 1


def test_a_long_address_is_stored_and_found(resources: Resources, sender: Sender, bucket: Bucket) -> None:
    """Two URIs that differ only after their first 500 characters are different."""
    random.seed(1)
    key = "checkpoints/1/" + "".join(random.choices(ascii_letters, k=7000))
    for last in "ab":
        sender.send(checkpoint(f"s3://{bucket.name}/{key}{last}"), job=1)
        sender.send(checkpoint(f"s3://{bucket.name}/{key}{last}"), job=2)
    for job in (1, 2):
        drain(resources, "checkpoints", job)
    assert len(rows(resources.engine, training_checkpoints, "uri")) == 4
    with resources.engine.connect() as connection:
        for last, is_free in (("a", False), ("c", True)):
            uri = f"s3://{bucket.name}/{key}{last}"
            assert _is_free(connection, Surplus(1, 9, "last", uri, None, None, "superseded")) is is_free
