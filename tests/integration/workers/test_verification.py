"""Verification against a real S3 server: existing files, faulty ones, and those that cannot be verified now."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, SECOND_NS, Sender, checkpoint, completion, drain, one, rows
from tests.integration.conftest import Bucket
from tests.s3 import s3_client, s3_server
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.checkpoint_keys import ManifestFile, S3Uri, encode_manifest
from trainwire.schemas.tables import sink_states, training_checkpoints, training_jobs
from trainwire.stack.persisted_config import free_port
from trainwire.stores.files.presign_policy import served_prefixes
from trainwire.stores.files.s3 import ObjectHead, S3Store, S3Unavailable, open_s3
from trainwire.stores.postgres.checkpoints import (
    NotFetchable,
    find_checkpoints,
    find_problems,
    find_source,
    last_checkpoint,
)
from trainwire.workers.checkpoints import verification as verify
from trainwire.workers.checkpoints.verification import MAX_VERIFICATIONS, Verification, VerificationReport
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import CompletedPartTypeDef

AT_ONCE = Backoff(first_s=0, cap_s=0)


@pytest.fixture(autouse=True)
def served(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the workers serve all of the test's bucket."""
    monkeypatch.setenv("CHECKPOINT_LEND_ALSO", f"s3://{bucket.name}/")


@pytest.fixture
def record(resources: Resources, sender: Sender) -> Callable[..., None]:
    """Give a function that stores checkpoint messages."""

    def record(*all_fields: dict[str, Any], job: int = 1) -> None:
        for fields in all_fields:
            sender.send(checkpoint(**{"kind": "epoch"} | fields), job=job)
        drain(resources, "checkpoints", job)

    return record


def verify_files(
    resources: Resources, store: Callable[[], S3Store] = open_s3, backoff: Backoff = AT_ONCE
) -> VerificationReport:
    """Run one verification like a worker, with all files due."""
    urls = {name: getattr(resources.settings, name) for name in ("database_url", "redis_url")}
    places = served_prefixes(load_settings(**urls))
    verification = Verification(
        resources.engine, store, places, slice_s=0, store_backoff=backoff, file_backoff=backoff
    )
    return verification.run()


def found(resources: Resources) -> list[tuple[bool, str | None]]:
    """Return whether each checkpoint is verified, and its fault."""
    found = rows(resources.engine, training_checkpoints, "verified_at", "verify_error")
    return [(at is not None, error) for at, error in found]


def test_objects_equal_to_their_records_are_verified(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """A file, a folder with its files, and an object of which only the URI is recorded are verified."""
    bucket.put("elsewhere/model.bin")
    bucket.put("elsewhere/folder/a")
    record(
        bucket.put("checkpoints/1/1/epoch-1.pt", b"1" * 1000),
        bucket.put_folder("checkpoints/1/1/epoch-2/", rank0=b"abc", rank1=b"defg"),
        {"uri": f"s3://{bucket.name}/elsewhere/model.bin"},
        {"uri": f"s3://{bucket.name}/elsewhere/folder/"},
    )
    report = verify_files(resources)
    assert found(resources) == [(True, None)] * 4
    assert (report.verified, report.wrong, report.unknown) == (4, 0, 0)


def test_an_object_of_several_parts_is_verified(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """The checksum of a multipart object is verified with or without the number of parts."""
    key, part = "checkpoints/1/1/epoch-1.pt", b"x" * 5 * 1024 * 1024
    client, name = bucket.client, bucket.name
    upload = client.create_multipart_upload(Bucket=name, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
    parts: list[CompletedPartTypeDef] = []
    for number in (1, 2):
        answer = client.upload_part(
            Bucket=name, Key=key, UploadId=upload, PartNumber=number, Body=part, ChecksumAlgorithm="SHA256"
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": answer["ChecksumSHA256"]})
    client.complete_multipart_upload(Bucket=name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    digest = hashlib.sha256(hashlib.sha256(part).digest() * 2).digest()
    fields = {"uri": str(S3Uri(name, key)), "size_bytes": 2 * len(part), "sha256": "0" * 64}
    record(fields | {"store_checksum": f"{base64.b64encode(digest).decode()}-2"})
    verify_files(resources)
    assert found(resources) == [(True, None)]


def test_missing_and_different_objects_are_reported(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """A missing object, another size and another content are reported, also inside of a folder."""
    recorded = {name: bucket.put(f"c/{name}.pt", b"right") for name in ("gone", "cut", "other", "sha")}
    recorded["sha"].pop("store_checksum")
    bucket.delete("c/gone.pt")
    bucket.put("c/cut.pt", b"righ")
    bucket.put("c/other.pt", b"wrong")
    bucket.put("c/sha.pt", b"wrong")
    folders = {name: bucket.put_folder(f"c/{name}/", shard=b"right") for name in ("f-gone", "f-other", "f-list")}
    bucket.delete("c/f-gone/shard")
    bucket.put("c/f-other/shard", b"wrong")
    bucket.put("c/f-list/manifest.json", b"[]")
    bucket.put_folder("c/f-none/", shard=b"right")
    bucket.delete("c/f-none/manifest.json")
    record(*recorded.values(), *folders.values(), folders["f-list"] | {"uri": f"s3://{bucket.name}/c/f-none/"})
    report = verify_files(resources)
    assert [error and error.partition(": ")[0] for _, error in found(resources)] == [
        "missing",
        "different",
        "different",
        "different",
        "missing",
        "different",
        "different",
        "missing",
    ]
    said = [error or "" for _, error in found(resources)]
    assert said[0] == f"missing: s3://{bucket.name}/c/gone.pt is not there"
    assert "has 4 bytes, the trainer recorded 5" in said[1]
    assert recorded["other"]["store_checksum"] in said[2]
    assert f"s3://{bucket.name}/c/f-gone/shard is not there" in said[4]
    assert report.wrong == 8


def test_an_object_that_comes_later_is_verified_then(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """An object that the store shows late is verified at the next attempt."""
    fields = bucket.put("c/late.pt")
    bucket.delete("c/late.pt")
    record(fields)
    verify_files(resources)
    assert found(resources)[0][1] == f"missing: {fields['uri']} is not there"
    bucket.put("c/late.pt")
    verify_files(resources)
    assert found(resources) == [(True, None)]


def test_a_wrong_object_is_left_after_some_looks(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """A lasting fault stays on the row, and requests for the object end."""
    record({"uri": f"s3://{bucket.name}/never.pt"})
    for _ in range(MAX_VERIFICATIONS + 3):
        verify_files(resources)
    row = one(resources.engine, training_checkpoints, job_id=1, seq=1)
    assert (row["verify_attempts"], row["verify_after"]) == (MAX_VERIFICATIONS, None)
    assert row["verify_error"] == f"missing: s3://{bucket.name}/never.pt is not there"


def test_a_missing_file_has_to_wait_for_its_next_look(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """A missing file is requested again after its own growing backoff, not at every tick of beat."""
    record({"uri": f"s3://{bucket.name}/never.pt"})
    verify_files(resources, backoff=Backoff(first_s=1000, cap_s=1000))
    verify_files(resources, fails_when_asked)
    assert one(resources.engine, training_checkpoints, job_id=1, seq=1)["verify_attempts"] == 1


def test_files_outside_s3_are_left_alone(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """No request is made for a local path, another scheme, or a file whose upload failed."""
    assert bucket.name
    record({"uri": "/out/last.pt"}, {"uri": "gs://b/x"}, {"uri": "out/x.pt", "upload_error": "S3 was away"})
    verify_files(resources, fails_when_asked)
    assert rows(resources.engine, training_checkpoints, "verify_attempts") == [0, 0, 0]


def test_an_address_that_nothing_can_have_is_missing(
    resources: Resources, record: Callable[..., None], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invalid URIs are reported as missing, and do not stop the verification of others."""
    monkeypatch.setenv("CHECKPOINT_LEND_ALSO", f"s3://{bucket.name}/, s3://no bucket:8/")
    record({"uri": "s3://"}, {"uri": "s3://bucket"}, {"uri": "s3://no bucket:8/x"}, bucket.put("c/a.pt"))
    report = verify_files(resources)
    assert [verified for verified, _ in found(resources)] == [False, False, False, True]
    assert all((error or "missing: ").startswith("missing: ") for _, error in found(resources))
    assert report.wrong == 3


def test_no_address_is_probed_that_only_a_trainer_named(
    resources: Resources,
    record: Callable[..., None],
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Objects outside of the served prefixes are recorded, never requested, with the reason."""
    monkeypatch.setenv("TRAINWIRE_CHECKPOINT_BUCKET", bucket.name)
    monkeypatch.delenv("CHECKPOINT_LEND_ALSO")
    elsewhere = (
        "salaries/2026.csv",
        "checkpoints-of-others/1.pt",
        "checkpoints/../salaries/2026.csv",
        "salaries/",
    )
    uris = [f"s3://{bucket.name}/{key}" for key in elsewhere] + [f"s3://{bucket.name}-of-others/checkpoints/1.pt"]
    record(*({"uri": uri} for uri in uris))
    report = verify_files(resources, fails_when_asked)
    why = f"not served: workers look in s3://{bucket.name}/checkpoints/; others are named in CHECKPOINT_LEND_ALSO"
    assert found(resources) == [(False, why)] * len(uris)
    assert (report.wrong, report.unknown) == (0, len(uris))
    with resources.engine.connect() as connection:
        files = find_checkpoints(connection, 1)
        assert not find_problems(connection, 1)
    assert {(file.state, file.reason) for file in files} == {("recorded", why.removeprefix("not served: "))}
    record(bucket.put("checkpoints/1/1/epoch-1.pt"))
    assert verify_files(resources).verified == 1, "files elsewhere do not delay the others"
    monkeypatch.setenv("CHECKPOINT_LEND_ALSO", f"s3://{bucket.name}/salaries/")
    bucket.put("salaries/2026.csv")
    assert verify_files(resources).verified == 2, "a file allowed later is verified in the next pass"
    monkeypatch.delenv("TRAINWIRE_CHECKPOINT_BUCKET")
    monkeypatch.delenv("CHECKPOINT_LEND_ALSO")
    record({"uri": "s3://b/x.pt"})
    verify_files(resources, fails_when_asked)
    assert "look in no bucket: TRAINWIRE_CHECKPOINT_BUCKET is not set" in str(found(resources)[-1][1])


def test_files_elsewhere_are_no_sign_that_the_store_answers(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """An unavailable store is probed with one file."""
    record(bucket.put("c/a.pt"))

    def unavailable() -> S3Store:
        raise S3Unavailable("S3 does not answer")

    with pytest.raises(Unavailable):
        verify_files(resources, unavailable)
    record({"uri": "s3://elsewhere/a.pt"}, job=5)
    with pytest.raises(Unavailable):
        verify_files(resources, unavailable)
    assert one(resources.engine, sink_states, sink="s3")["attempts"] == 2


def test_an_overwritten_file_is_not_an_error(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """Of several `last` with one key only the newest can exist: the others are marked as overwritten."""
    record(*(bucket.put("c/last.pt", content) | {"kind": "last"} for content in (b"1", b"22", b"333")))
    report = verify_files(resources)
    assert found(resources) == [(False, None), (False, None), (True, None)]
    assert (report.verified, report.wrong) == (1, 0)
    assert verify_files(resources, fails_when_asked).verified == 0


def test_another_job_cannot_make_a_file_look_overwritten(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """Only a newer row of the same job overwrites."""
    fields = bucket.put("c/a.pt")
    record(fields)
    record(fields | {"size_bytes": 1}, job=2)
    verify_files(resources)
    assert [verified for verified, _ in found(resources)] == [True, False]


def test_a_forbidden_object_is_asked_for_again(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """After a 403 the reason is kept, other files are verified, and the file is retried later."""
    record(bucket.put("secret/a.pt"), bucket.put("open/a.pt"))
    bucket.forbid("secret/", "s3:GetObject", "s3:HeadObject")
    report = verify_files(resources)
    (_, error), (verified, _) = found(resources)
    assert verified
    assert error is not None
    assert error.startswith(f"not verified: S3 answered 403 Forbidden for s3://{bucket.name}/secret/a.pt")
    assert report.unknown == 1
    bucket.allow()
    verify_files(resources)
    assert found(resources) == [(True, None)] * 2


def test_a_key_that_the_store_does_not_know(
    resources: Resources, record: Callable[..., None], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With wrong credentials no file is reported as missing."""
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        record({"uri": f"s3://{bucket.name}/a.pt"})
        verify_files(resources)
    ((verified, error),) = found(resources)
    assert not verified
    assert (error or "").startswith("not verified: S3 answered 403")


def test_the_store_down_and_back(
    resources: Resources, record: Callable[..., None], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is down no file is reported as missing; once it is back, all are verified."""
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    record(*({"uri": f"s3://{bucket.name}/{number}.pt"} for number in range(40)))
    with pytest.raises(Unavailable, match="Could not connect to the endpoint URL"):
        verify_files(resources)
    assert not any(verified for verified, _ in found(resources))
    assert all((error or "not verified").startswith("not verified") for _, error in found(resources))
    state = one(resources.engine, sink_states, sink=verify.STORE)
    assert (state["attempts"], state["down_since"] is not None) == (1, True)
    with s3_server(port) as url:
        client = s3_client(url)
        client.create_bucket(Bucket=bucket.name)
        for number in range(40):
            client.put_object(Bucket=bucket.name, Key=f"{number}.pt", Body=b"x")
        while verify_files(resources).more:
            pass
    assert found(resources) == [(True, None)] * 40
    assert one(resources.engine, sink_states, sink=verify.STORE)["down_since"] is None


def test_while_the_store_is_down_it_is_not_asked(
    resources: Resources, record: Callable[..., None], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the next probe is due no request is made; the probe is one file."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    record(*({"uri": f"s3://{bucket.name}/{number}.pt"} for number in range(40)))
    slow = Backoff(first_s=1000, cap_s=1000)
    with pytest.raises(Unavailable):
        verify_files(resources, backoff=slow)
    looks = sum(rows(resources.engine, training_checkpoints, "verify_attempts"))
    assert 1 <= looks <= verify.FILES_AT_ONCE
    assert verify_files(resources, fails_when_asked).unknown == 0
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE sink_states SET next_probe_at = now()"))
    with pytest.raises(Unavailable):
        verify_files(resources, backoff=slow)
    assert sum(rows(resources.engine, training_checkpoints, "verify_attempts")) == looks + 1


def test_missing_credentials_are_reported_to_the_operator(
    resources: Resources, record: Callable[..., None], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without AWS credentials reports the missing variables, and no file as missing."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    record({"uri": f"s3://{bucket.name}/a.pt"})
    with pytest.raises(Unavailable, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        verify_files(resources)


def test_two_workers_do_not_look_at_the_same_file(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """While one worker verifies, another finds nothing to do, without waiting."""
    record(*(bucket.put(f"c/{number}.pt") for number in range(3)))
    store = HeldStore(open_s3())
    first = threading.Thread(target=verify_files, args=(resources, lambda: store))
    first.start()
    try:
        assert store.is_asked.wait(120)
        assert verify_files(resources, fails_when_asked).verified == 0
    finally:
        store.may_answer.set()
        first.join(120)
    assert found(resources) == [(True, None)] * 3
    assert rows(resources.engine, training_checkpoints, "verify_attempts") == [1, 1, 1]


@pytest.mark.parametrize(
    "path",
    ["../2/1/best.pt", "/etc/passwd", "a/../../b", "a//b", "", ".", "C:/x", "a\\..\\b", "x\0y", "manifest.json"],
)
def test_a_hostile_manifest_is_not_followed(
    resources: Resources, record: Callable[..., None], bucket: Bucket, path: str
) -> None:
    """A manifest with a path outside of its folder is refused before any request for its files."""
    fields = bucket.put("c/f/manifest.json", encode_manifest([ManifestFile(path=path, size_bytes=1, sha256="0")]))
    record(fields | {"uri": f"s3://{bucket.name}/c/f/"})
    verify_files(resources, lambda: ReadOnly(open_s3()))
    ((verified, error),) = found(resources)
    assert not verified
    assert (error or "").startswith(f"different: s3://{bucket.name}/c/f/manifest.json lists ")


@pytest.mark.parametrize("content", [b"{}", b"\xff\xfe", b"[" * 100_000, b"x" * (9 * 1024 * 1024)])
def test_a_manifest_that_is_none_is_different(
    resources: Resources, record: Callable[..., None], bucket: Bucket, content: bytes
) -> None:
    """Invalid or too large manifests are reported as different."""
    record(bucket.put("c/f/manifest.json", content) | {"uri": f"s3://{bucket.name}/c/f/"})
    verify_files(resources)
    assert (found(resources)[0][1] or "").startswith(f"different: s3://{bucket.name}/c/f/manifest.json ")


def test_a_folder_too_large_for_a_round_stops_nothing(
    resources: Resources, record: Callable[..., None], bucket: Bucket
) -> None:
    """A folder with too many files for a round waits for the next, with the reason; others are verified."""
    folder = bucket.put_folder("c/f/", a=b"1", b=b"2", c=b"3")
    record(folder, bucket.put("c/a.pt"))
    # The clock is asked when the run and the round begin, when a file's turn comes, and after each shard.
    clock = iter([0.0, 0.0, 0.0, 0.0, *[1e6] * 100])
    lock = threading.Lock()

    def tick() -> float:
        with lock:
            return next(clock)

    Verification(
        resources.engine, open_s3, [f"s3://{bucket.name}/"], slice_s=0, file_backoff=AT_ONCE, clock=tick
    ).run()
    assert found(resources)[0] == (
        False,
        f"not verified: {folder['uri']} has 3 files, more than can be looked at in {verify.ROUND_S:.0f} s",
    )
    while verify_files(resources).more:
        pass
    assert found(resources) == [(True, None)] * 2


class HeldStore(S3Store):
    """A store that waits for an event before it answers."""

    def __init__(self, store: S3Store) -> None:
        super().__init__(store._client)
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()

    def head(self, uri: S3Uri) -> ObjectHead:
        """Look at an object, in time."""
        self.is_asked.set()
        assert self.may_answer.wait(120)
        return super().head(uri)


class ReadOnly(HeldStore):
    """A store without permission for HEAD requests."""

    def head(self, uri: S3Uri) -> ObjectHead:
        """Fail."""
        pytest.fail(f"{uri} was asked for")


def fails_when_asked() -> S3Store:
    """Fail the test if a store is used."""
    pytest.fail("the object store was asked")


@pytest.fixture
def saves(bucket: Bucket, resources: Resources, sender: Sender) -> Callable[..., str]:
    """Give a function that records a checkpoint of job 1, saved at a second, and returns its URI."""

    def save(name: str, second: int, *, exists: bool = True, attempt: int = 1, **fields: Any) -> str:
        if exists:
            bucket.client.put_object(Bucket=bucket.name, Key=name, Body=b"weights")
        uri = f"s3://{bucket.name}/{name}"
        message = checkpoint(uri, **{"kind": "epoch"} | fields)
        message.ts = NOW_NS + second * SECOND_NS
        sender.send(message, attempt=attempt, source=f"0-{attempt}")
        drain(resources, "checkpoints")
        return uri

    return save


def paths(resources: Resources) -> tuple[str | None, str | None]:
    """Return the best and the last path of job 1."""
    job = one(resources.engine, training_jobs, id=1)
    return job["best_checkpoint_path"], job["last_checkpoint_path"]


def test_a_checkpoint_that_is_missing_is_not_the_last(resources: Resources, saves: Callable[..., str]) -> None:
    """The job's last and best checkpoints are the newest ones that exist, until the trainer saves others."""
    good = saves("1.pt", 1, is_best=True)
    missing = saves("2.pt", 2, exists=False, is_best=True)
    assert paths(resources) == (missing, missing)
    verify_files(resources)
    assert paths(resources) == (good, good)
    with resources.engine.connect() as connection:
        assert str(find_source(connection, 1, "last").uri) == good
    late = saves("0.pt", 0)
    newer = saves("3.pt", 3)
    assert late != newer == paths(resources)[1]


def test_a_job_of_which_no_file_exists_has_no_last_checkpoint(
    resources: Resources, saves: Callable[..., str]
) -> None:
    """A job without existing files has no last path, until its next checkpoint."""
    saves("1.pt", 1, exists=False)
    verify_files(resources)
    assert paths(resources) == (None, None)
    with resources.engine.connect() as connection:
        assert last_checkpoint(connection, 1) is None
        with pytest.raises(NotFetchable, match="no last checkpoint that can be used"):
            find_source(connection, 1, "last")
    assert saves("0.pt", 0) == paths(resources)[1]


def test_a_missing_file_that_appears_is_the_last_again(
    bucket: Bucket, resources: Resources, saves: Callable[..., str]
) -> None:
    """A file that appears later is the last checkpoint again, unless a newer one is."""
    saves("1.pt", 1)
    missing = saves("2.pt", 2, exists=False)
    verify_files(resources)
    bucket.client.put_object(Bucket=bucket.name, Key="2.pt", Body=b"weights")
    verify_files(resources)
    assert paths(resources)[1] == missing
    saves("3.pt", 3, exists=False)
    verify_files(resources)
    newest = saves("4.pt", 4)
    bucket.client.put_object(Bucket=bucket.name, Key="3.pt", Body=b"weights")
    verify_files(resources)
    assert paths(resources)[1] == newest


def test_an_attempt_goes_back_to_the_one_before(resources: Resources, saves: Callable[..., str]) -> None:
    """If an attempt has no existing checkpoint, the last one is that of the attempt before."""
    first = saves("1.pt", 10)
    saves("2.pt", 20, exists=False, attempt=2)
    verify_files(resources)
    assert paths(resources)[1] == first
    # The attempt's own path replaces it, with any times.
    assert saves("3.pt", 5, attempt=2) == paths(resources)[1]


def test_a_completion_does_not_bring_a_missing_checkpoint_back(
    resources: Resources, sender: Sender, saves: Callable[..., str]
) -> None:
    """A completion's path is used until verification finds the file missing, and not afterwards."""
    good = saves("1.pt", 1)
    missing = saves("2.pt", 2, exists=False)
    end = completion(ts=NOW_NS + 9 * SECOND_NS, last_checkpoint_path=missing, best_checkpoint_path=missing)
    verify_files(resources)
    sender.send(end)
    drain(resources, "completions")
    assert paths(resources) == (None, good)


def test_a_missing_checkpoint_that_a_completion_named_first(
    resources: Resources, sender: Sender, saves: Callable[..., str]
) -> None:
    """Verification that finds the file missing removes the job's path."""
    good = saves("1.pt", 1)
    missing = saves("2.pt", 2, exists=False)
    sender.send(completion(ts=NOW_NS + 9 * SECOND_NS, last_checkpoint_path=missing))
    drain(resources, "completions")
    assert paths(resources)[1] == missing
    verify_files(resources)
    assert paths(resources)[1] == good
