"""Retention on a real S3 server: deleted files, kept ones, and protection against forged rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, SECOND_NS, Sender, checkpoint, drain, one, rows
from tests.integration.conftest import Bucket
from trainwire.schemas.checkpoint_keys import ManifestFile, S3Uri, encode_manifest
from trainwire.schemas.tables import training_checkpoints, training_jobs
from trainwire.schemas.wire.messages import Metrics
from trainwire.stack.persisted_config import free_port
from trainwire.stores.files.s3 import S3Store, open_s3
from trainwire.workers.checkpoints import surplus
from trainwire.workers.checkpoints.retention import Retention
from trainwire.workers.checkpoints.surplus import RetentionPolicy
from trainwire.workers.checkpoints.verification import Verification
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources

Record = Callable[..., None]


@pytest.fixture
def record(resources: Resources, sender: Sender, bucket: Bucket) -> Record:
    """Give a function that stores checkpoints of a job, a second apart, and has them verified."""
    saved = 0

    def record(*all_fields: dict[str, Any], job: int = 1, attempt: int = 1) -> None:
        nonlocal saved
        for fields in all_fields:
            saved += 1
            body = checkpoint(**{"kind": "epoch"} | fields)
            body.ts = NOW_NS + saved * SECOND_NS
            sender.send(body, job=job, attempt=attempt)
        drain(resources, "checkpoints", job)
        Verification(resources.engine, open_s3, [f"s3://{bucket.name}/"], slice_s=0).run()

    return record


def retain(
    resources: Resources,
    bucket: Bucket,
    *,
    keep: int = 1,
    dry_run: bool = False,
    store: Callable[[], Any] = open_s3,
) -> list[str]:
    """Run retention as a worker does; return the keys of the files that it deleted, or would."""
    keeping = RetentionPolicy(keep, bucket.name, "checkpoints")
    done = Retention(resources.engine, store, keeping).run(dry_run=dry_run)
    return [S3Uri.parse(each.uri).key for each in done]


def epochs(bucket: Bucket, count: int, job: int = 1) -> list[dict[str, Any]]:
    """Upload so many checkpoints of a job."""
    return [bucket.put(f"checkpoints/{job}/1/epoch-{number}.pt") for number in range(1, count + 1)]


def stamped(resources: Resources) -> list[int]:
    """Return the seqs of the rows that are stamped as deleted."""
    found = rows(resources.engine, training_checkpoints, "seq", "deleted_at")
    return [seq for seq, deleted_at in found if deleted_at is not None]


def test_artifacts_neither_count_nor_are_deleted(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """Files that are no checkpoints push none out, stay themselves, and never become the last checkpoint."""
    files = epochs(bucket, 3)
    plots = [bucket.put(f"checkpoints/1/1/plot-{number}.png") for number in range(4)]
    record(*files, *(plot | {"kind": f"artifact:plot-{number}.png"} for number, plot in enumerate(plots)))
    finish()
    assert one(resources.engine, training_jobs, id=1)["last_checkpoint_path"] == files[2]["uri"]
    assert retain(resources, bucket, keep=2) == ["checkpoints/1/1/epoch-1.pt"]


def test_the_last_and_the_best_stay(resources: Resources, record: Record, finish: Record, bucket: Bucket) -> None:
    """Of six checkpoints the two newest and the newest best one are kept; the others are deleted and stamped."""
    files = epochs(bucket, 6)
    files[0] |= {"is_best": True}
    files[2] |= {"is_best": True}
    record(*files)
    finish()
    assert retain(resources, bucket, keep=2) == [f"checkpoints/1/1/epoch-{number}.pt" for number in (1, 2, 4)]
    present = [bucket.has(f"checkpoints/1/1/epoch-{number}.pt") for number in range(1, 7)]
    assert present == [False, False, True, False, True, True]
    assert stamped(resources) == [1, 2, 4]
    assert retain(resources, bucket, keep=2) == []


def test_a_dry_run_deletes_nothing(resources: Resources, record: Record, finish: Record, bucket: Bucket) -> None:
    """It returns the files that a run would delete, and deletes none."""
    record(*epochs(bucket, 3))
    finish()
    named = retain(resources, bucket, dry_run=True)
    assert named == ["checkpoints/1/1/epoch-1.pt", "checkpoints/1/1/epoch-2.pt"]
    assert all(bucket.has(key) for key in named)
    assert stamped(resources) == []
    assert retain(resources, bucket) == named


@pytest.mark.parametrize("status", ["pending", "running", "stalled"])
def test_a_job_at_work_keeps_everything(
    resources: Resources, record: Record, finish: Record, bucket: Bucket, status: str
) -> None:
    """Files of a job that has not ended are kept."""
    record(*epochs(bucket, 3))
    finish()
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = :status"), {"status": status})
    assert retain(resources, bucket) == []


def test_a_lost_job_keeps_everything_for_a_day(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """Files of a lost job are kept for a day, because its trainer may come back."""
    record(*epochs(bucket, 2))
    finish()
    quiet = text("UPDATE training_jobs SET status = 'lost', quiet_since = now() - make_interval(hours => :hours)")
    for hours, deleted in ((23, []), (25, ["checkpoints/1/1/epoch-1.pt"])):
        with resources.engine.begin() as connection:
            connection.execute(quiet, {"hours": hours})
        assert retain(resources, bucket) == deleted


def test_checkpoints_named_best_and_last_stay(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """The paths of the job protect their files, however old, and so do those of another job."""
    files = epochs(bucket, 5)
    record(*files)
    finish(best_checkpoint_path=files[0]["uri"], last_checkpoint_path=files[1]["uri"])
    finish(2, best_checkpoint_path=files[2]["uri"])
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-4.pt"]


def test_the_starting_checkpoint_of_a_running_job_stays(
    resources: Resources, sender: Sender, record: Record, finish: Record, bucket: Bucket
) -> None:
    """A checkpoint that a running job names, in its parameters or its own rows, is in use until it ends."""
    files = epochs(bucket, 4)
    record(*files)
    finish()
    sender.send(Metrics(ts=NOW_NS, params={"resume": {"from": f"--init={files[0]['uri']}"}}), job=2)
    drain(resources, "metrics", 2)
    record({"uri": files[1]["uri"], "kind": "init"}, job=2)
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-3.pt"]
    finish(2, last_checkpoint_path="/elsewhere")
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-1.pt"]


def test_unverified_checkpoints_stay(resources: Resources, record: Record, finish: Record, bucket: Bucket) -> None:
    """A file that is not verified is neither deleted nor counted among the last ones."""
    files = epochs(bucket, 4)
    files[0] |= {"size_bytes": 1}
    files[3] |= {"size_bytes": 1}
    record(*files)
    finish(last_checkpoint_path="/elsewhere")
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-2.pt"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://{bucket}/checkpoints/2/1/epoch-1.pt",
        "s3://{bucket}/checkpoints/11/1/epoch-1.pt",
        "s3://{bucket}/models/production.pt",
        "s3://{bucket}/checkpoints/1/../2/1/epoch-1.pt",
        "s3://{bucket}/checkpoints/1/./1/epoch-1.pt",
        "s3://{bucket}/checkpoints/1//1/epoch-1.pt",
        "s3://{other}/checkpoints/1/1/epoch-1.pt",
        "s3://{bucket}/checkpoints/1/",
        "s3://{bucket}/",
        "/etc/passwd",
    ],
)
def test_no_message_can_make_it_delete_elsewhere(
    resources: Resources, record: Record, finish: Record, bucket: Bucket, uri: str
) -> None:
    """A row may name any object: only those under the bucket, the prefix and the row's own job are deleted."""
    hostile = uri.format(bucket=bucket.name, other=Bucket(bucket.client).name)
    record({"uri": hostile}, *epochs(bucket, 2))
    finish()
    # As if it were verified: its location alone protects it.
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_checkpoints SET verified_at = now()"))
    asked = Asked(open_s3())
    assert retain(resources, bucket, store=lambda: asked) == ["checkpoints/1/1/epoch-1.pt"]
    assert asked.deleted == [f"s3://{bucket.name}/checkpoints/1/1/epoch-1.pt"]


def test_a_file_that_two_rows_name_goes_with_the_newer(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """A file is kept while the newer row of it is; both rows are stamped when it is deleted."""
    last = bucket.put("checkpoints/1/1/last.pt")
    record(last, *epochs(bucket, 2), last)
    finish(last_checkpoint_path="/elsewhere")
    assert retain(resources, bucket, keep=1) == [f"checkpoints/1/1/epoch-{number}.pt" for number in (1, 2)]
    assert bucket.has("checkpoints/1/1/last.pt")
    record(bucket.put("checkpoints/1/1/final.pt"))
    finish(last_checkpoint_path="/elsewhere")
    assert retain(resources, bucket) == ["checkpoints/1/1/last.pt"]
    assert stamped(resources) == [1, 2, 3, 4]


def test_names_that_begin_alike_are_different_files(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """The name epoch-10 does not protect epoch-1."""
    record(*(bucket.put(f"checkpoints/1/1/epoch-{number}") for number in (1, 10)))
    finish()
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-1"]


def test_a_folder_goes_as_a_whole(resources: Resources, record: Record, finish: Record, bucket: Bucket) -> None:
    """The manifest and the files that it lists are deleted; other objects in the folder are kept."""
    folder = bucket.put_folder("checkpoints/1/1/epoch-1/", **{"a": b"1", "deep/b": b"2"})
    bucket.put("checkpoints/1/1/epoch-1/notes.txt")
    record(folder, *epochs(bucket, 1))
    finish()
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-1/"]
    left = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="checkpoints/1/1/epoch-1/")["Contents"]
    assert [found["Key"] for found in left] == ["checkpoints/1/1/epoch-1/notes.txt"]


def test_an_interrupted_deletion_of_a_folder_is_resumed(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """A worker that is killed midway leaves the manifest, with which the next run deletes the rest."""
    record(bucket.put_folder("checkpoints/1/1/epoch-1/", a=b"1", b=b"2", c=b"3"), *epochs(bucket, 1))
    finish()
    dying = Asked(open_s3(), most=2)
    with pytest.raises(KeyboardInterrupt):
        retain(resources, bucket, store=lambda: dying)
    assert bucket.has("checkpoints/1/1/epoch-1/manifest.json")
    assert stamped(resources) == []
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-1/"]
    assert not any(bucket.has(f"checkpoints/1/1/epoch-1/{name}") for name in ("a", "b", "c", "manifest.json"))


def test_a_crash_before_the_stamp_is_harmless(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """A file or folder that was deleted without its row being updated is recorded by the next run."""
    folder = bucket.put_folder("checkpoints/1/1/epoch-0/", a=b"1")
    record(folder, *epochs(bucket, 2))
    finish()
    for key in ("epoch-0/a", "epoch-0/manifest.json", "epoch-1.pt"):
        bucket.delete(f"checkpoints/1/1/{key}")
    assert len(retain(resources, bucket)) == 2
    assert stamped(resources) == [1, 2]


@pytest.mark.parametrize("path", ["../epoch-9.pt", "../../../2/1/best.pt", "/checkpoints/2/1/best.pt"])
def test_a_hostile_manifest_deletes_nothing(
    resources: Resources, record: Record, finish: Record, bucket: Bucket, path: str
) -> None:
    """A replaced manifest, or one with a path outside of its folder, is refused, which the row records."""
    manifest = encode_manifest([ManifestFile(path=path, size_bytes=1, sha256="0")])
    fields = bucket.put("checkpoints/1/1/epoch-1/manifest.json", manifest)
    record(fields | {"uri": f"s3://{bucket.name}/checkpoints/1/1/epoch-1/"}, *epochs(bucket, 1))
    finish()
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_checkpoints SET verified_at = now()"))
    asked = Asked(open_s3())
    assert retain(resources, bucket, store=lambda: asked) == []
    assert asked.deleted == []
    ((error, verified_at), _) = rows(resources.engine, training_checkpoints, "verify_error", "verified_at")
    assert verified_at is None
    assert "which does not lie in the folder" in error


def test_a_folder_does_not_take_other_checkpoints_with_it(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """A row that names the folder around other checkpoints, with a manifest that lists them, is not deleted."""
    (kept,) = epochs(bucket, 1)
    listed = ManifestFile(path="epoch-1.pt", size_bytes=kept["size_bytes"], sha256=kept["sha256"])
    around = bucket.put("checkpoints/1/1/manifest.json", encode_manifest([listed]))
    record(around | {"uri": f"s3://{bucket.name}/checkpoints/1/1/"}, kept)
    finish(last_checkpoint_path="/elsewhere")
    assert retain(resources, bucket) == []
    assert bucket.has("checkpoints/1/1/epoch-1.pt")


@pytest.mark.parametrize("is_best", [False, True])
def test_a_file_is_not_taken_out_of_a_folder(
    resources: Resources, record: Record, finish: Record, bucket: Bucket, is_best: bool
) -> None:
    """A file within another checkpoint's folder is not deleted, for any reason that protects the folder."""
    folder = bucket.put_folder("checkpoints/1/1/epoch-2/", shard=b"1")
    record({"uri": f"{folder['uri']}shard"}, *epochs(bucket, 1), folder | {"is_best": is_best})
    finish(last_checkpoint_path="/elsewhere")
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-1.pt"]
    assert bucket.has("checkpoints/1/1/epoch-2/shard")


def test_files_in_use_do_not_hide_the_rest(
    resources: Resources, record: Record, finish: Record, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages full of files in use do not hide deletable files after them."""
    monkeypatch.setattr(surplus, "PAGE_FILES", 2)
    files = epochs(bucket, 7)
    record(*files)
    finish()
    for job, file in enumerate(files[:5], start=2):
        finish(job, best_checkpoint_path=file["uri"])
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-6.pt"]


def test_a_forbidden_deletion_does_not_stop_the_others(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """A file whose deletion gets 403 is left for the next run; the others are deleted."""
    record(*epochs(bucket, 3))
    finish()
    bucket.forbid("checkpoints/1/1/epoch-1", "s3:DeleteObject")
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-2.pt"]
    assert stamped(resources) == [2]
    bucket.allow()
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-1.pt"]


def test_a_store_that_is_down_is_no_deletion(
    resources: Resources, record: Record, finish: Record, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is stamped only if its file was deleted."""
    record(*epochs(bucket, 2))
    finish()
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(Unavailable):
            retain(resources, bucket)
    assert stamped(resources) == []
    assert retain(resources, bucket) == ["checkpoints/1/1/epoch-1.pt"]


def test_a_job_that_begins_again_keeps_its_planned_files(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """Before each deletion the use of the file is checked again, as a new attempt may have begun from it."""
    record(*epochs(bucket, 4))
    finish()

    def restart() -> None:
        with resources.engine.begin() as connection:
            connection.execute(text("UPDATE training_jobs SET status = 'running'"))

    asked = Asked(open_s3(), then=restart)
    assert retain(resources, bucket, store=lambda: asked) == ["checkpoints/1/1/epoch-1.pt"]


def test_two_workers_do_not_delete_at_once(
    resources: Resources, record: Record, finish: Record, bucket: Bucket
) -> None:
    """While one worker deletes, another one deletes nothing."""
    record(*epochs(bucket, 2))
    finish()
    second: list[list[str]] = []
    asked = Asked(open_s3(), then=lambda: second.append(retain(resources, bucket)))
    assert retain(resources, bucket, store=lambda: asked) == ["checkpoints/1/1/epoch-1.pt"]
    assert second == [[]]


class Asked:
    """A store that records deletions, calls back after the first, or is killed after some."""

    def __init__(
        self, store: S3Store, *, most: int | None = None, then: Callable[[], object] = lambda: None
    ) -> None:
        self._store = store
        self._most = most
        self._then = then
        self._lock = threading.Lock()
        self.deleted: list[str] = []

    def read(self, uri: S3Uri) -> Iterator[bytes]:
        """Yield the bytes of an object."""
        return self._store.read(uri)

    def delete(self, uri: S3Uri) -> None:
        """Delete an object."""
        with self._lock:
            if len(self.deleted) == self._most:
                raise KeyboardInterrupt
            self.deleted.append(str(uri))
        self._store.delete(uri)
        if len(self.deleted) == 1:
            self._then()
