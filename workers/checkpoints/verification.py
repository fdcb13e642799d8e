"""Checkpoint files against the object store: is there what the trainer said it uploaded?"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from sqlalchemy import Engine

from trainwire.schemas.backoff import Backoff
from trainwire.schemas.checkpoint_keys import ManifestFile, S3Uri
from trainwire.stores.files.folders import Reader, WrongManifest, address_of, read_manifest
from trainwire.stores.files.presign_policy import lies_in, shown_places
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, ObjectHead, StoreAway
from trainwire.stores.postgres.checkpoints import DIFFERENT, MISSING, NOT_SERVED, UNVERIFIED
from trainwire.workers.checkpoints import verification_rows as checkpoints
from trainwire.workers.checkpoints.verification_rows import Finding, UnverifiedFile
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.sinks import cursors

STORE: Final = "s3"
"""Its name in sink_states, where it is known whether it answers."""
ROUND_FILES: Final = 32
READ_FILES: Final = 500
READS: Final = 20
"""Files that Postgres is asked for at once, and how often where all of them lie where nobody looks."""
FILES_AT_ONCE: Final = 8
SHARDS_AT_ONCE: Final = 4
"""Of each folder that is being looked at."""
ROUND_S: Final = 45.0
"""What is not looked at by then waits for the next round: well within the time limit of a task."""
LOOKS: Final = 10
"""A file that is missing or different is looked at so often, over about an hour, before it is left as it is."""
FILE_BACKOFF: Final = Backoff(first_s=10, cap_s=3600)


class ObjectStore(Reader, Protocol):
    """What is asked of an object store; its methods raise the errors of `trainwire.stores.files.s3`."""

    def head(self, uri: S3Uri) -> ObjectHead:
        """Look at an object without reading it."""

    def has_any(self, folder: S3Uri) -> bool:
        """Tell whether there is any object below a folder's key."""


@dataclass(slots=True)
class VerificationReport:
    """What one verification did, in files; `more` when its time was over before all had been looked at."""

    verified: int = 0
    wrong: int = 0
    unknown: int = 0
    more: bool = False

    def count(self, findings: Sequence[Finding]) -> None:
        """Add what was found."""
        for finding in findings:
            if finding.error is None:
                self.verified += not finding.file.is_overwritten
            elif finding.error.startswith((UNVERIFIED, NOT_SERVED)):
                self.unknown += 1
            else:
                self.wrong += 1


class Mismatch(Exception):  # noqa: N818 - what was found, not what went wrong
    """An object is there and is not what the trainer recorded."""


class TooSlow(Exception):  # noqa: N818 - said as it stands
    """A folder has more files than can be looked at in one round."""


class Verification:
    """Looks at what is due, several files at once, for about a time slice; one worker at a time does.

    `places` are what the addresses begin with that are looked at: whoever can send a message can name any other,
    and would learn by our keys what is there.
    """

    def __init__(
        self,
        engine: Engine,
        open_store: Callable[[], ObjectStore],
        places: Sequence[str],
        *,
        slice_s: float,
        store_backoff: Backoff | None = None,
        file_backoff: Backoff = FILE_BACKOFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._open_store = open_store
        self._places = places
        self._slice_s = slice_s
        self._store_backoff = store_backoff or Backoff()
        self._file_backoff = file_backoff
        self._clock = clock

    def run(self) -> VerificationReport:
        """Verify what is due. Raises `Unavailable` when the object store or Postgres is away."""
        report = VerificationReport()
        deadline = self._clock() + self._slice_s
        # The lease ends with this transaction, or with this process, whichever is first.
        with postgres_errors(), self._engine.begin() as lease:
            if not checkpoints.take_turn(lease, "verify") or not self._may_ask(report):
                return report
            while self._round(ROUND_FILES, report):
                if self._clock() >= deadline:
                    report.more = True
                    return report
        return report

    def _may_ask(self, report: VerificationReport) -> bool:
        """Tell whether the store answers; where it did not, find out with one file when its time has come."""
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
        """Look at the next files; False when none is due."""
        files = self._next_files(limit, report)
        if not files:
            return False
        findings, failure = self._look_at(files)
        with self._engine.begin() as connection:
            checkpoints.record(connection, findings)
            if failure is not None:
                attempts = cursors.sink_state(connection, STORE).attempts + 1
                cursors.mark_down(connection, STORE, str(failure), self._store_backoff.delay_s(attempts))
        report.count(findings)
        if failure is not None:
            raise Unavailable(str(failure)) from failure
        return True

    def _next_files(self, limit: int, report: VerificationReport) -> Sequence[UnverifiedFile]:
        """Return the next files to look at, having set those aside that lie where nobody looks."""
        for _ in range(READS):
            with self._engine.begin() as connection:
                due = checkpoints.due_files(connection, READ_FILES)
                ours: list[UnverifiedFile] = []
                elsewhere: list[UnverifiedFile] = []
                for file in due:
                    (elsewhere if self._is_elsewhere(file) else ours).append(file)
                findings = [self._set_aside(file) for file in elsewhere]
                checkpoints.record(connection, findings)
            report.count(findings)
            if len(elsewhere) < READ_FILES:
                return ours[:limit]
        return []

    def _is_elsewhere(self, file: UnverifiedFile) -> bool:
        try:
            return not file.is_overwritten and not lies_in(S3Uri.parse(file.uri), self._places)
        except ValueError:
            return False  # no address at all: `find_fault` says so, and asks nobody

    def _set_aside(self, file: UnverifiedFile) -> Finding:
        places = shown_places(self._places)
        said = f"{NOT_SERVED}: workers look in {places}; others are named in CHECKPOINT_LEND_ALSO"
        return Finding(file, said, self._file_backoff.delay_s(file.attempts + 1))

    def _look_at(self, files: Sequence[UnverifiedFile]) -> tuple[list[Finding], StoreAway | None]:
        """Return what was found, and the failure of the store where it is away; then some were not looked at."""
        try:
            store = self._open_store()
        except StoreAway as exc:
            return [], exc
        look = partial(self._finding, store, self._clock() + ROUND_S, failures := list[StoreAway]())
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            findings = [finding for finding in pool.map(look, files) if finding is not None]
        return findings, failures[0] if failures else None

    def _finding(
        self, store: ObjectStore, deadline: float, failures: list[StoreAway], file: UnverifiedFile
    ) -> Finding | None:
        """Look at one file; None where there is no time, or another has just found out that the store is away."""
        if file.is_overwritten:
            return Finding(file)
        if failures or self._clock() > deadline:
            return None
        try:
            error = find_fault(store, file, lambda: self._clock() > deadline)
        except StoreAway as exc:
            failures.append(exc)
            # It lets others go first: a file that alone upsets the store must not be every probe.
            return Finding(file, f"{UNVERIFIED}: {exc}", self._store_backoff.delay_s(file.attempts + 1))
        except (NotAllowed, TooSlow) as exc:
            return Finding(file, f"{UNVERIFIED}: {exc}", self._file_backoff.delay_s(file.attempts + 1))
        if error is None:
            return Finding(file)
        is_last = file.attempts + 1 >= LOOKS
        return Finding(file, error, None if is_last else self._file_backoff.delay_s(file.attempts + 1))


def find_fault(store: ObjectStore, file: UnverifiedFile, is_late: Callable[[], bool]) -> str | None:
    """Return what is wrong with the object of a checkpoint, None where it is as recorded.

    Where the trainer recorded neither size nor checksum, it need only be there. Raises what the store raises,
    and `TooSlow` when a folder is not through before `is_late`.
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


def _check_folder(store: ObjectStore, folder: S3Uri, sha256: str | None, is_late: Callable[[], bool]) -> None:
    if sha256 is None:
        if not store.has_any(folder):
            raise NoSuchObject(f"nothing is in {folder}")
        return
    files = read_manifest(store, folder, sha256)
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        # Who leaves this loop early takes back the looks that have not begun.
        for _ in pool.map(lambda shard: _check_shard(store, folder, shard), files):
            if is_late():
                raise TooSlow(f"{folder} has {len(files):,} files, more than can be looked at in {ROUND_S:.0f} s")


def _check_shard(store: ObjectStore, folder: S3Uri, shard: ManifestFile) -> None:
    _check_object(store, address_of(folder, shard), shard.size_bytes, shard.store_checksum, shard.sha256)


def _check_object(
    store: ObjectStore, uri: S3Uri, size_bytes: int | None, checksum: str | None, sha256: str | None
) -> None:
    found = store.head(uri)
    if size_bytes is not None and found.size_bytes != size_bytes:
        raise Mismatch(f"{uri} has {found.size_bytes:,} bytes, the trainer recorded {size_bytes:,}")
    if found.checksum is None:
        return
    if checksum is None and "-" not in found.checksum:
        checksum = _as_s3_has_it(sha256)  # of an object in one piece, the store's checksum is that of the file
    if checksum is not None and not _is_same(found.checksum, checksum):
        raise Mismatch(f"{uri} has the checksum {found.checksum}, the trainer recorded {checksum}")


def _is_same(found: str, recorded: str) -> bool:
    """Compare two of S3's checksums; not every server repeats the number of parts that follows the dash."""
    return found == recorded or (
        found.partition("-")[0] == recorded.partition("-")[0] and ("-" in found) != ("-" in recorded)
    )


def _as_s3_has_it(sha256: str | None) -> str | None:
    """Return a SHA-256 in hex as S3 writes it; None for what is none."""
    try:
        return None if sha256 is None else base64.b64encode(binascii.unhexlify(sha256)).decode()
    except (binascii.Error, ValueError):
        return None
