"""Verifies that uploaded checkpoint files are in the object store, with the recorded size and checksum."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Engine

from trainwire.schemas.backoff import Backoff
from trainwire.schemas.checkpoint_keys import ManifestFile, S3Uri
from trainwire.stores.files.folders import WrongManifest, address_of, read_manifest
from trainwire.stores.files.presign_policy import lies_in, shown_prefixes
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, S3Store, S3Unavailable
from trainwire.stores.postgres.checkpoints import DIFFERENT, MISSING, NOT_SERVED, UNVERIFIED
from trainwire.workers.checkpoints.runs import exclusive_run
from trainwire.workers.checkpoints.verification_rows import UnverifiedFile, VerificationResult, due_files, record
from trainwire.workers.sinks import cursors

STORE: Final = "s3"
"""Name of the object store in the table `sink_states`, which records outages."""
ROUND_FILES: Final = 32
READ_FILES: Final = 500
READS: Final = 20
"""Maximum number of reads from Postgres in a round, with `READ_FILES` files each, while none of them is served."""
FILES_AT_ONCE: Final = 8
SHARDS_AT_ONCE: Final = 4
"""Number of files of one folder that are verified concurrently."""
ROUND_S: Final = 45.0
"""Time limit in seconds of one round, well within that of a task. Other files are verified in the next round."""
MAX_VERIFICATIONS: Final = 10
"""Number of times that a missing or different file is verified, within about an hour."""
FILE_BACKOFF: Final = Backoff(first_s=10, cap_s=3600)


@dataclass(slots=True)
class VerificationReport:
    """How many files were verified, found wrong, or could not be verified (`unknown`).

    `more` is True if the time of the run ended before all due files were verified.
    """

    verified: int = 0
    wrong: int = 0
    unknown: int = 0
    more: bool = False

    def count(self, results: Sequence[VerificationResult]) -> None:
        """Add verification results to the numbers of this report."""
        for result in results:
            if result.error is None:
                self.verified += not result.file.is_overwritten
            elif result.error.startswith((UNVERIFIED, NOT_SERVED)):
                self.unknown += 1
            else:
                self.wrong += 1


class Mismatch(Exception):  # noqa: N818 - a result
    """The size or checksum of an object differs from the recorded one."""


class TooSlow(Exception):  # noqa: N818 - a state
    """A folder has more files than can be verified before the time is up."""


class Verification:
    """Verifies checkpoint files that are due until its time slice ends; only one worker at a time does this.

    Only URIs that begin with one of `prefixes` are verified: a message can contain any URI, and the result would
    reveal which objects the workers' keys can read.
    """

    def __init__(
        self,
        engine: Engine,
        open_store: Callable[[], S3Store],
        prefixes: Sequence[str],
        *,
        slice_s: float,
        store_backoff: Backoff | None = None,
        file_backoff: Backoff = FILE_BACKOFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._open_store = open_store
        self._prefixes = prefixes
        self._slice_s = slice_s
        self._store_backoff = store_backoff or Backoff()
        self._file_backoff = file_backoff
        self._clock = clock

    def run(self) -> VerificationReport:
        """Verify the files that are due until the time slice ends; return the counts.

        Verifies none if another worker does this, or while the object store is marked as down and no probe is due.
        Raises `Unavailable` if the object store or Postgres does not answer.
        """
        report = VerificationReport()
        deadline = self._clock() + self._slice_s
        with exclusive_run(self._engine, "verify") as lease:
            if lease is None or not self._is_reachable(report):
                return report
            while self._round(ROUND_FILES, report):
                if self._clock() >= deadline:
                    report.more = True
                    return report
        return report

    def _is_reachable(self, report: VerificationReport) -> bool:
        """Return whether the object store is reachable.

        If it is marked as down and a probe is due, verify one file first.
        """
        with self._engine.begin() as connection:
            state = cursors.sink_state(connection, STORE)
        if state.next_probe_at is None:
            return True
        if not state.is_due or not self._round(1, report):
            return False
        with self._engine.begin() as connection:
            cursors.mark_up(connection, STORE)
        return True

    def _round(self, limit: int, report: VerificationReport) -> bool:
        """Verify up to `limit` files that are due, and record the results; return False if no file is due.

        An error of the object store is recorded, and raised as `S3Unavailable`.
        """
        files = self._next_files(limit, report)
        if not files:
            return False
        results, failure = self._verify(files)
        with self._engine.begin() as connection:
            record(connection, results)
            if failure is not None:
                attempts = cursors.sink_state(connection, STORE).attempts + 1
                cursors.mark_down(connection, STORE, str(failure), self._store_backoff.delay_s(attempts))
        report.count(results)
        if failure is not None:
            raise failure
        return True

    def _next_files(self, limit: int, report: VerificationReport) -> Sequence[UnverifiedFile]:
        """Return up to `limit` files to verify next.

        Files whose URI begins with none of the allowed prefixes are recorded as not served, and omitted.
        """
        for _ in range(READS):
            with self._engine.begin() as connection:
                due = due_files(connection, READ_FILES)
                results = [self._not_served(file) for file in due if self._is_outside(file)]
                record(connection, results)
            report.count(results)
            if len(results) < READ_FILES:
                return [file for file in due if not self._is_outside(file)][:limit]
        return []

    def _is_outside(self, file: UnverifiedFile) -> bool:
        try:
            return not file.is_overwritten and not lies_in(S3Uri.parse(file.uri), self._prefixes)
        except ValueError:
            return False  # not an address: `find_fault` reports it

    def _not_served(self, file: UnverifiedFile) -> VerificationResult:
        prefixes = shown_prefixes(self._prefixes)
        error = f"{NOT_SERVED}: workers look in {prefixes}; others are named in CHECKPOINT_LEND_ALSO"
        return VerificationResult(file, error, self._file_backoff.delay_s(file.attempts + 1))

    def _verify(self, files: Sequence[UnverifiedFile]) -> tuple[list[VerificationResult], S3Unavailable | None]:
        """Verify files concurrently; return the results, and the error of the object store or None.

        After an error, the files that were not verified have no result.
        """
        try:
            store = self._open_store()
        except S3Unavailable as exc:
            return [], exc
        verify = partial(self._result, store, self._clock() + ROUND_S, failures := list[S3Unavailable]())
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            results = [result for result in pool.map(verify, files) if result is not None]
        return results, failures[0] if failures else None

    def _result(
        self, store: S3Store, deadline: float, failures: list[S3Unavailable], file: UnverifiedFile
    ) -> VerificationResult | None:
        """Verify one file; return None if the time is up, or if another file found the store unavailable."""
        if file.is_overwritten:
            return VerificationResult(file)
        if failures or self._clock() > deadline:
            return None
        try:
            error = find_fault(store, file, lambda: self._clock() > deadline)
        except S3Unavailable as exc:
            failures.append(exc)
            # Other files are due first: one file that makes the store fail must not be every probe.
            return VerificationResult(file, f"{UNVERIFIED}: {exc}", self._store_backoff.delay_s(file.attempts + 1))
        except (NotAllowed, TooSlow) as exc:
            return VerificationResult(file, f"{UNVERIFIED}: {exc}", self._file_backoff.delay_s(file.attempts + 1))
        if error is None:
            return VerificationResult(file)
        is_last = file.attempts + 1 >= MAX_VERIFICATIONS
        return VerificationResult(file, error, None if is_last else self._file_backoff.delay_s(file.attempts + 1))


def find_fault(store: S3Store, file: UnverifiedFile, is_late: Callable[[], bool]) -> str | None:
    """Return a description of the fault of a checkpoint's object, or None if the object is as recorded.

    Without a recorded size and checksum, the object only has to exist. Raises `NotAllowed` and `S3Unavailable`,
    and `TooSlow` if `is_late` returns True before all files of a folder are checked.
    """
    try:
        uri = S3Uri.parse(file.uri)
    except ValueError as exc:
        return f"{MISSING}: {exc}"
    try:
        if uri.is_folder:
            _check_folder(store, uri, file.sha256, is_late)
        else:
            _check_object(store, uri, file.size_bytes, file.store_checksum, file.sha256)
    except NoSuchObject as exc:
        return f"{MISSING}: {exc}"
    except (Mismatch, WrongManifest) as exc:
        return f"{DIFFERENT}: {exc}"
    return None


def _check_folder(store: S3Store, folder: S3Uri, sha256: str | None, is_late: Callable[[], bool]) -> None:
    if sha256 is None:
        if not store.has_any(folder):
            raise NoSuchObject(f"nothing is in {folder}")
        return
    files = read_manifest(store, folder, sha256)
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        # An exception in this loop cancels the checks that have not begun.
        for _ in pool.map(lambda shard: _check_shard(store, folder, shard), files):
            if is_late():
                raise TooSlow(f"{folder} has {len(files):,} files, more than can be looked at in {ROUND_S:.0f} s")


def _check_shard(store: S3Store, folder: S3Uri, shard: ManifestFile) -> None:
    _check_object(store, address_of(folder, shard), shard.size_bytes, shard.store_checksum, shard.sha256)


def _check_object(
    store: S3Store, uri: S3Uri, size_bytes: int | None, checksum: str | None, sha256: str | None
) -> None:
    found = store.head(uri)
    if size_bytes is not None and found.size_bytes != size_bytes:
        raise Mismatch(f"{uri} has {found.size_bytes:,} bytes, the trainer recorded {size_bytes:,}")
    if found.checksum is None:
        return
    if checksum is None and "-" not in found.checksum:
        checksum = _s3_checksum(sha256)  # without parts, the store's checksum is that of the file
    if checksum is not None and not _is_same(found.checksum, checksum):
        raise Mismatch(f"{uri} has the checksum {found.checksum}, the trainer recorded {checksum}")


def _is_same(found: str, recorded: str) -> bool:
    """Return whether two S3 checksums are equal; some servers omit the dash and the number of parts at the end."""
    return found == recorded or (
        found.partition("-")[0] == recorded.partition("-")[0] and ("-" in found) != ("-" in recorded)
    )


def _s3_checksum(sha256: str | None) -> str | None:
    """Convert a SHA-256 from hexadecimal to S3's base64; return None if `sha256` is not hexadecimal."""
    try:
        return None if sha256 is None else base64.b64encode(binascii.unhexlify(sha256)).decode()
    except (binascii.Error, ValueError):
        return None
