"""How a file is brought into a store that fails in the ways stores do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from trainwire.ingest.process.daemon_pool import DaemonPool
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.ingest.uploads.object_store import ObjectStore, StoreRefused, UploadedPart, UploadForgotten
from trainwire.ingest.uploads.retry import StoreUnavailable, UploadAbandoned, UploadRetry
from trainwire.ingest.uploads.snapshots import Snapshots
from trainwire.ingest.uploads.transfer import MAX_PARTS, PART_BYTES, Transfer, part_bytes
from trainwire.schemas.checkpoint_keys import S3Uri

WHERE: Final = S3Uri("bucket", "42/1/last.pt")
DATA: Final = bytes(range(256)) * (PART_BYTES // 256 * 2 + 1)
"""Three parts."""


class Store(ObjectStore):
    """A store in memory that raises the errors in `faults`, one for each request of that name."""

    def __init__(self) -> None:
        self.faults: dict[str, list[Exception]] = {}
        self.objects: dict[S3Uri, bytes] = {}
        self.open: dict[str, dict[int, bytes]] = {}
        self.begun = 0
        self.parts_sent = 0

    def begin(self, uri: S3Uri) -> str:
        """Begin an upload."""
        self._fail("begin", uri)
        self.begun += 1
        upload_id = str(self.begun)
        self.open[upload_id] = {}
        return upload_id

    def put_part(self, uri: S3Uri, upload_id: str, number: int, data: bytes) -> UploadedPart:
        """Keep a part."""
        self._fail(f"part {number}", uri)
        if upload_id not in self.open:
            raise UploadForgotten(upload_id)
        self.parts_sent += 1
        self.open[upload_id][number] = data
        return UploadedPart(number, f"tag {number}", hashlib.sha256(data).digest())

    def complete(self, uri: S3Uri, upload_id: str, parts: Sequence[UploadedPart]) -> str:
        """Make an object of the parts, in the order in which they are named."""
        self._fail("complete", uri)
        kept = self.open.pop(upload_id)
        self.objects[uri] = b"".join(kept[part.number] for part in parts)
        return "checksum"

    def abort(self, uri: S3Uri, upload_id: str) -> None:
        """Forget the parts."""
        self._fail("abort", uri)
        self.open.pop(upload_id, None)

    def _fail(self, request: str, uri: S3Uri) -> None:
        assert uri == WHERE
        if self.faults.get(request):
            raise self.faults[request].pop(0)


@pytest.fixture
def pool() -> Iterator[DaemonPool[UploadedPart]]:
    """Give two threads."""
    made: DaemonPool[UploadedPart] = DaemonPool(2, "test")
    yield made
    made.close()


def retry(retry_s: float = 5.0) -> UploadRetry:
    """Return one with short pauses."""
    return UploadRetry(Timing(first_backoff_s=0.001, longest_backoff_s=0.01), retry_s)


def upload(store: Store, pool: DaemonPool[UploadedPart], folder: Path, patient: UploadRetry) -> str:
    """Upload three parts and return the SHA-256 that is reported."""
    path = folder / "last.pt"
    path.write_bytes(DATA)
    snapshots = Snapshots("copy", None)
    try:
        return Transfer(store, patient, pool).upload(snapshots.take(path), WHERE, lambda _: None).sha256
    finally:
        snapshots.remove()


def test_only_the_missing_part_is_sent_again(pool: DaemonPool[UploadedPart], tmp_path: Path) -> None:
    """Failures of one part, of the beginning and of the end cost no other part a second way."""
    store = Store()
    away = StoreUnavailable("503")
    store.faults = {"begin": [away], "part 2": [away, away], "complete": [away]}
    assert upload(store, pool, tmp_path, retry()) == hashlib.sha256(DATA).hexdigest()
    assert store.objects == {WHERE: DATA}
    assert (store.begun, store.parts_sent) == (1, 3)


@pytest.mark.parametrize("request_", ["part 1", "part 3", "complete"])
def test_a_forgotten_upload_begins_again(pool: DaemonPool[UploadedPart], tmp_path: Path, request_: str) -> None:
    """Where the store does not know the upload any more, all parts are sent in a new one."""
    store = Store()
    store.faults = {request_: [UploadForgotten("404 NoSuchUpload")]}
    assert upload(store, pool, tmp_path, retry()) == hashlib.sha256(DATA).hexdigest()
    assert (store.objects, store.begun) == ({WHERE: DATA}, 2)


def test_a_store_that_always_forgets_is_given_up(pool: DaemonPool[UploadedPart], tmp_path: Path) -> None:
    """It is not begun for ever."""
    store = Store()
    store.faults = {"complete": [UploadForgotten("404 NoSuchUpload")] * 9}
    with pytest.raises(UploadAbandoned, match="3 times"):
        upload(store, pool, tmp_path, retry())
    assert not store.open


def test_a_refusal_is_not_tried_again(pool: DaemonPool[UploadedPart], tmp_path: Path) -> None:
    """A refused upload is abandoned at once and aborted, even where that fails too."""
    store = Store()
    store.faults = {"part 2": [StoreRefused("403")], "abort": [StoreUnavailable("503")]}
    with pytest.raises(StoreRefused, match="403"):
        upload(store, pool, tmp_path, retry())
    assert not store.objects


def test_an_outage_that_lasts_is_given_up_and_aborted(pool: DaemonPool[UploadedPart], tmp_path: Path) -> None:
    """After retry_s without a success no part is left in the store."""
    store = Store()
    store.faults = {"complete": [StoreUnavailable("503 SlowDown")] * 1000}
    with pytest.raises(UploadAbandoned, match=r"503 SlowDown; tried for 0\.05 s"):
        upload(store, pool, tmp_path, retry(0.05))
    assert (store.open, store.objects) == ({}, {})


def test_after_an_outage_each_is_tried_once_until_one_succeeds(
    pool: DaemonPool[UploadedPart], tmp_path: Path
) -> None:
    """Uploads after the first abandoned one do not wait as long again."""
    store, patient = Store(), retry(0.05)
    store.faults = {"begin": [StoreUnavailable("503")] * 1000}
    for _ in range(2):
        with pytest.raises(UploadAbandoned):
            upload(store, pool, tmp_path, patient)
    left = len(store.faults["begin"])
    with pytest.raises(UploadAbandoned):
        upload(store, pool, tmp_path, patient)
    assert left - len(store.faults["begin"]) == 1
    store.faults = {"part 1": [StoreUnavailable("503")]}
    assert upload(store, pool, tmp_path, patient) == hashlib.sha256(DATA).hexdigest()


def test_the_end_of_the_run_ends_every_attempt(pool: DaemonPool[UploadedPart], tmp_path: Path) -> None:
    """Once stopped, nothing is sent."""
    patient = retry()
    patient.stop()
    store = Store()
    with pytest.raises(UploadAbandoned, match="the run ended"):
        upload(store, pool, tmp_path, patient)
    assert store.begun == 0


@pytest.mark.parametrize("size_bytes", [1, PART_BYTES * MAX_PARTS, PART_BYTES * MAX_PARTS + 1, 5 * 1024**4])
def test_there_are_never_too_many_parts(size_bytes: int) -> None:
    """Up to S3's largest object, ten thousand parts are enough."""
    assert part_bytes(size_bytes) >= PART_BYTES
    assert -(-size_bytes // part_bytes(size_bytes)) <= MAX_PARTS
